"""What a finished run left: its recipe, its weights, and the models they make."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipelines.files import local_path
from pipelines.running.cohort import ARMS
from pipelines.running.data import analysed
from uml_core import recipe as recipes
from uml_core.arms import build_fit
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.modalities import Modality
from uml_core.specs import Recipe

WEIGHTS = "model.safetensors"
_ARM_FILE = re.compile(r"(\w+)-seed(\d+)\.safetensors")


@dataclass(frozen=True)
class FinishedRun:
    """A run that can be looked at again.

    folder       where its files lie
    kind         "train", "compare", or "weights" (a folder with model.safetensors alone)
    shots, seed  of the labelled samples that the model under evaluation was made with
    model        its weights
    arms         arm -> seed -> weights: the chosen fits of a comparison, else empty
    """

    folder: Path
    kind: str
    recipe: Recipe
    shots: int | None
    seed: int
    model: Path
    arms: Mapping[str, Mapping[int, Path]]


def open_finished(folder: str | Path, overrides: Sequence[str] = ()) -> FinishedRun:
    """The run in `folder`: --out of `uml train` or `uml compare`, its checkpoint or model folder.

    `overrides` change fields of the recipe it was made with. Of a comparison the chosen UML fit of
    the first seed at the most shots is the model. Raises UserError where something is missing.
    """
    folder = local_path(folder, "RUN")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the --out folder of a finished run")
    if folder.name == "checkpoint" and (folder.parent / "metrics.json").is_file():
        folder = folder.parent
    kind, model, arms = _weights(folder)
    found = [f / "recipe.yaml" for f in (folder, model.parent) if (f / "recipe.yaml").is_file()]
    if not found:
        raise UserError(f"{folder} has no recipe.yaml, so {model.name} cannot be built again")
    recipe = recipes.load(found[0], overrides)
    shots, seed = analysed(recipe)
    if kind == "train":
        made = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        shots, seed = made["shots"], made["seed"]
    if kind == "compare" and arms:
        if seed not in arms.get("uml", {}):
            raise UserError(
                f"{folder / ARMS} has no uml-seed{seed}.safetensors: has the run ended?"
            )
        model = arms["uml"][seed]
    return FinishedRun(folder, kind, recipe, shots, seed, model, arms)


def _weights(folder: Path) -> tuple[str, Path, dict[str, dict[int, Path]]]:
    """(kind, weights of the model, weights of all arms) of a folder."""
    if (folder / "compare.json").is_file():
        arms: dict[str, dict[int, Path]] = {}
        for path in sorted((folder / ARMS).glob("*.safetensors")):
            if match := _ARM_FILE.fullmatch(path.name):
                arms.setdefault(match[1], {})[int(match[2])] = path
        arms = {arm: dict(sorted(by_seed.items())) for arm, by_seed in arms.items()}
        found = "compare", folder / "model" / WEIGHTS, arms
    elif (folder / "metrics.json").is_file():
        found = "train", folder / "checkpoint" / WEIGHTS, {}
    else:
        found = "weights", folder / WEIGHTS, {}
    if not found[1].is_file():
        raise UserError(
            f"{folder} holds no finished run: expected metrics.json and checkpoint/{WEIGHTS} (from "
            f"`uml train`), compare.json and model/{WEIGHTS} (from `uml compare`), or {WEIGHTS}"
        )
    return found


def stems_of(path: Path) -> set[str]:
    """The modalities that a weights file has a stem for. Raises UserError for unreadable files."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return {name.split(".")[1] for name in names if name.startswith("stems.")}


def load_learner(
    path: Path,
    recipe: Recipe,
    modalities: Mapping[str, Modality],
    *,
    arm: str = "uml",
    num_classes: int | None,
    device: torch.device | str = "cpu",
) -> UnpairedLearner:
    """The learner of a weights file, in evaluation mode.

    A file of the target's path alone makes a learner of the target alone. Raises UserError where
    the weights do not fit the recipe.
    """
    others = stems_of(path) - {recipe.target}
    if arm != "unimodal_direct":
        arm = "uml" if others else "unimodal"
    # Trained weights take the place of a language model's, whose folder may be gone by now.
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, trunk_init=None))
    learner = new_learner(bare, modalities, arm=arm, seed=0, num_classes=num_classes)
    try:
        learner.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[-1].split())
        raise UserError(
            f"{path} does not fit the recipe ({reason}): the model, its modalities and its "
            "classes must be those it was trained with"
        ) from error
    return learner.to(device).eval()


def new_learner(
    recipe: Recipe,
    modalities: Mapping[str, Modality],
    *,
    arm: str = "uml",
    seed: int,
    num_classes: int | None,
    device: torch.device | str = "cpu",
) -> UnpairedLearner:
    """The learner of an arm before training, in evaluation mode: what untrained weights show."""
    # Compiling pays over thousands of steps, not over one pass.
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, compile=False))
    options: dict[str, Any] = {"num_classes": num_classes, "device": device}
    return build_fit(recipe, arm, seed, {}, modalities, **options).learner.eval()
