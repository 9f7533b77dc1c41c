"""Packaged recipes are valid and their headers say what to type, what to expect and how long."""

import re
from argparse import Namespace
from pathlib import Path

import pytest

from pipelines import cli
from uml_core.arms import applicable

FOLDER = Path(cli.__file__).parent / "recipes"


@pytest.mark.parametrize("name", cli.packaged())
def test_a_packaged_recipe_is_a_comparison_with_a_header(name, tmp_path):
    recipe = cli.load_recipe(Namespace(recipe=name, overrides=[f"data_root={tmp_path}"]))
    assert recipe.name == name and len(recipe.seeds) >= 5
    assert {"unimodal", "uml", "uml_permuted"} <= set(applicable(recipe))
    header = (FOLDER / f"{name}.yaml").read_text().partition(f"name: {name}")[0]
    assert f"uml compare {name}" in header and "Expected:" in header
    assert re.search(r"minutes\s+on", header.replace("\n#", ""))


def test_the_setting_of_a_packaged_recipe_can_be_changed(tmp_path):
    """Stems that are left open fit both settings; a stem that does not says which one does."""
    at = f"data_root={tmp_path}"
    ssl = "setting=self_supervised"
    shapes = cli.load_recipe(Namespace(recipe="shapes", overrides=[at, ssl]))
    assert applicable(shapes) == ["unimodal", "uml", "uml_permuted"]
    with pytest.raises(ValueError, match="use stem: frames in the self-supervised"):
        cli.load_recipe(Namespace(recipe="digits", overrides=[at, ssl]))
    cli.load_recipe(Namespace(recipe="digits", overrides=[at, ssl, "modalities.pen.stem=frames"]))
    cli.load_recipe(Namespace(recipe="digits-ssl", overrides=[at, "target=pen"]))
