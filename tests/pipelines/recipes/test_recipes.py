"""Packaged recipes are valid and their headers say what to type, what to expect and how long."""

import re
from argparse import Namespace
from pathlib import Path

import pytest

from pipelines import cli
from uml_core.arms import applicable

SETS = (
    *("caltech101", "pets", "cars", "flowers102", "food101", "aircraft", "sun397", "dtd"),
    *("ucf101", "imagenet"),
)
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


PAPER = {
    *(f"{s}-{e}" for s in SETS for e in ("fewshot", "probe", "finetune")),
    *(f"esc{n}-{target}" for n in (19, 27) for target in ("audio", "image")),
    *(f"multibench-{s}" for s in ("mosi", "mosei", "mustard", "urfunny", "mimic")),
}


def test_every_experiment_of_the_paper_that_needs_data_has_a_recipe():
    assert {name.removeprefix("paper/") for name in cli.of_the_paper()} == PAPER


@pytest.mark.parametrize("name", cli.of_the_paper())
def test_a_recipe_of_the_paper_is_complete_and_dry_runs_without_its_data(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", name, "--dry-run"]) == 0
    said = capsys.readouterr().out
    where = said.partition(" yet: ")[2].splitlines()[0]
    assert re.search(r"\.(com|org|edu|ch|uk|html|php)\b", where) and ";" in where, where
    arms = ["unimodal", "uml", "uml_permuted"]
    if name.startswith("paper/esc") or name.endswith(("fewshot", "probe")):
        arms += ["unimodal_direct", "uml_init"]
    fits = said.splitlines()[-1]
    assert fits.startswith("fits") and all(arm in fits for arm in arms)
    assert str(tmp_path / "data") in said and not list(tmp_path.iterdir())
    header = (FOLDER / f"{name}.yaml").read_text().partition("\nname: ")[0]
    for part in (f"uml compare {name}", "# Data: ", "Expected", "uml prepare", "# Time: "):
        assert part in header, part
    assert cli.main(["compare", name]) == 2  # without --dry-run the data must be there
    assert "modalities." in capsys.readouterr().err


def test_data_that_is_there_is_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pets-features").mkdir(parents=True)
    (tmp_path / "data" / "pets-features" / "image-train-000000.tar").write_bytes(b"no tar")
    assert cli.main(["compare", "paper/pets-probe", "--dry-run"]) == 2
    assert "image-train-000000.tar" in capsys.readouterr().err
