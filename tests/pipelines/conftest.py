"""Finished runs without training: the files that `uml train` and `uml compare` leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from pipelines.running.cohort import target_path
from pipelines.running.data import num_classes, open_data, resolved
from pipelines.running.exporting import describe_model, of_comparison
from uml_core.arms import build_fit
from uml_core.recipe import load

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, tiny_recipe: dict[str, Any]) -> MakeRun:
    """make_run("train" | "compare" | "model", name="run", **changes of the recipe) -> its folder.

    The weights are those before training: what is tested here is how they are looked at.
    """

    def make(kind: str, name: str = "run", **changes: Any) -> Path:
        out = tmp_path / name
        out.mkdir()
        source = out / "given.yaml"
        source.write_text(yaml.safe_dump({**tiny_recipe, **changes}))
        recipe = load(source)
        source.unlink()
        data = open_data(recipe)
        recipe = resolved(recipe, data)
        (out / "recipe.yaml").write_text(recipe.to_yaml())

        def weights(arm: str, seed: int) -> dict[str, Any]:
            classes = num_classes(recipe, data)
            fit = build_fit(recipe, arm, seed, {}, data.modalities, num_classes=classes)
            return fit.learner.state_dict()

        seed = recipe.seeds[0]
        if kind == "train":
            (out / "checkpoint").mkdir()
            save_file(weights("uml", seed), out / "checkpoint" / "model.safetensors")
            (out / "checkpoint" / "recipe.yaml").write_text(recipe.to_yaml())
            metrics = {"target": recipe.target, "shots": recipe.shots, "seed": seed}
            (out / "metrics.json").write_text(json.dumps(metrics))
            describe_model(out / "checkpoint", recipe, data, {"job": "train", "seed": seed})
            return out
        model = out / "model"
        model.mkdir()
        save_file(target_path(weights("uml", seed), recipe.target), model / "model.safetensors")
        (model / "recipe.yaml").write_text(recipe.to_yaml())
        if kind == "compare":
            (out / "arms").mkdir()
            for arm in ("unimodal", "uml", "uml_permuted"):
                for s in recipe.seeds:
                    kept = weights(arm, s)
                    if s != seed:
                        kept = target_path(kept, recipe.target)
                    save_file(kept, out / "arms" / f"{arm}-seed{s}.safetensors")
            rising = [10.0 * (i + 1) for i in range(len(recipe.seeds))]
            scores = {"val_accuracy": rising, "test_accuracy": rising[::-1], "chosen": {}}
            entry = {
                "shots": recipe.shots,
                "baseline": "unimodal",
                "seeds": recipe.seeds,
                "arms": dict.fromkeys(("unimodal", "uml", "uml_permuted"), scores),
            }
            (out / "compare.json").write_text(json.dumps(entry))
            if not isinstance(recipe.shots, list):
                about = of_comparison([entry], recipe.shots, seed=seed)
                describe_model(model, recipe, data, about)
        return out

    return make
