"""From a finished run to the target-only model, and to the form in which MLflow serves it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file

import uml_core
from pipelines.files import write_text
from pipelines.reporting.mlflow_store import prepare_mlflow
from pipelines.running.data import Data
from pipelines.running.finished import WEIGHTS, FinishedRun, open_finished
from uml_core.arms import without_projection
from uml_core.errors import UserError, near
from uml_core.export import ENCODER, FACTS, TargetModel, load, target_model
from uml_core.serving import INPUT
from uml_core.specs import Recipe

CODE = "code"  # folder of the flavour with this package's method, so that nothing else is needed
# What the method imports; the rest of this project is not needed to predict.
REQUIRED = (
    *("torch", "torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "pandas"),
    *("pydantic", "pyyaml", "safetensors", "soundfile", "pillow", "mlflow"),
)


# ------------------------------------------------------------------------- after training


def describe_model(
    folder: Path, recipe: Recipe, data: Data, made_with: Mapping[str, Any]
) -> TargetModel:
    """Writes model.json beside the weights that a job left in `folder`; returns the model.

    recipe  resolved; the weights may hold more than the target's path
    """
    target = recipe.target
    made = target_model(
        target,
        data.modalities[target],
        recipe.model,
        _weights(folder / WEIGHTS),
        data.classes if recipe.setting == "supervised" else None,
        encoder=data.train[target].encoder,
        made_with={"run": recipe.name, "setting": recipe.setting, **made_with},
    )
    made.save_facts(folder)
    return made


def of_comparison(
    entries: Sequence[Mapping[str, Any]],
    shots: int | None,
    arm: str = "uml",
    seed: int | None = None,
) -> dict[str, Any]:
    """`made_with` of one chosen fit of a comparison; without a seed that of best validation.

    entries: one object of compare.json per number of shots. Raises UserError for an arm or a seed
    that there is not.
    """
    entry = next(e for e in entries if e["shots"] == shots)
    if arm not in entry["arms"]:
        raise UserError(
            f"--arm {arm}{near(arm, entry['arms'])}: this comparison has {', '.join(entry['arms'])}"
        )
    numbers, seeds = entry["arms"][arm], entry["seeds"]
    if seed is None:
        seed = max(zip(numbers["val_accuracy"], seeds, strict=True), key=lambda pair: pair[0])[1]
    if seed not in seeds:
        raise UserError(f"--seed {seed}: this comparison has {', '.join(map(str, seeds))}")
    at = seeds.index(seed)
    return {
        "job": "compare",
        "arm": arm,
        "seed": seed,
        "shots": shots,
        "chosen": numbers["chosen"],
        "val_accuracy": numbers["val_accuracy"][at],
        "test_accuracy": numbers["test_accuracy"][at],
    }


# ---------------------------------------------------------------------------- uml export


def exportable(folder: Path, arm: str | None, seed: int | None) -> TargetModel:
    """The model of a finished run: the one that the job chose, or another of a comparison's fits.

    Raises UserError where there is no such run or fit.
    """
    place = _place(folder)
    if arm is None and seed is None:
        return load(place)
    if not (folder / "compare.json").is_file():
        raise UserError("--arm and --seed choose among the fits of `uml compare`; this run has one")
    run, chosen = open_finished(folder), load(place)
    compare = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    entries = compare.get("results", [compare])
    made_with = of_comparison(entries, run.shots, arm or "uml", seed)
    return _fit(run, chosen, made_with)


def _place(folder: Path) -> Path:
    """Where the model of a run lies."""
    places = [folder / "model", folder / "checkpoint", folder]
    found = [place for place in places if (place / FACTS).is_file()]
    if not found:
        open_finished(folder)  # says what is wrong with the folder, if anything is
        raise UserError(
            f"{folder} has no {FACTS} in model/ or checkpoint/: the job has not ended, or an older "
            "version ran it. Run the same command with --resume"
        )
    return found[0]


def _fit(run: FinishedRun, chosen: TargetModel, made_with: dict[str, Any]) -> TargetModel:
    """The weights that a comparison kept of one arm and seed, as a model."""
    arm, seed = made_with["arm"], made_with["seed"]
    kept = run.arms.get(arm, {})
    if seed not in kept:
        have = ", ".join(map(str, kept)) or "none"
        raise UserError(
            f"the weights of {arm} with seed {seed} were not kept (those of seeds {have} were): "
            "they were too large for all seeds, or that fit diverged"
        )
    target, spec = run.recipe.target, run.recipe.model
    modality = run.recipe.modalities[target].build()
    if arm == "unimodal_direct":
        modality, spec = without_projection(modality, spec)
    about = {k: chosen.made_with[k] for k in ("run", "setting")}
    return target_model(
        target,
        modality,
        spec,
        _weights(kept[seed]),
        chosen.classes,
        encoder=chosen.encoder,
        made_with={**about, **made_with},
    )


def _weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


# ---------------------------------------------------------------------------------- MLflow


def write_flavour(model: TargetModel, folder: Path) -> None:
    """Makes the folder of a saved model one that MLflow loads as `python_function`.

    Adds MLmodel (with the columns of input and output), requirements.txt, python_env.yaml and the
    method's code, so that a machine without this project can serve it.
    """
    prepare_mlflow()
    from mlflow import pyfunc
    from mlflow.models import Model

    shutil.rmtree(folder / CODE, ignore_errors=True)
    shutil.copytree(
        Path(uml_core.__file__).parent,
        folder / CODE / "uml_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    wanted = [*REQUIRED, *(("transformers", "peft") if (folder / ENCODER).is_dir() else ())]
    # Without local parts (2.14.1+cpu): another machine's index knows the public version only.
    pins = [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in wanted]
    write_text(folder / "requirements.txt", "\n".join(pins) + "\n")
    environment = {
        "python": platform.python_version(),
        "build_dependencies": ["pip"],
        "dependencies": ["-r requirements.txt"],
    }
    write_text(folder / "python_env.yaml", yaml.safe_dump(environment, sort_keys=False))
    described = Model(signature=_signature(model), metadata=_metadata(model))
    pyfunc.add_to_model(
        described, loader_module="uml_core.serving", code=CODE, python_env="python_env.yaml"
    )
    described.save(folder / "MLmodel")


def _signature(model: TargetModel) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    numbers = Array(DataType.double)
    kinds: dict[str, Any] = {
        "text": DataType.string,
        "vector": numbers,
        "sequence": Array(numbers),
    }
    takes = ColSpec(kinds.get(model.modality.kind, DataType.binary), INPUT)
    gives: list[Any] = [ColSpec(numbers, "embedding")]
    if model.classes is not None:
        scores = [ColSpec(DataType.string, "prediction"), ColSpec(numbers, "probabilities")]
        gives = [*scores, *gives]
    return ModelSignature(inputs=Schema([takes]), outputs=Schema(gives))


def _metadata(model: TargetModel) -> dict[str, Any]:
    """What a person sees in the registry; MLflow takes plain JSON."""
    facts = model.facts()
    return {name: facts[name] for name in ("target", "encoder", "made_with")}


def flavoured(model: TargetModel, folder: Path) -> None:
    """The whole export: both files of the model and MLflow's flavour of it."""
    model.save(folder)
    write_flavour(model, folder)


def registry_tags(model: TargetModel) -> dict[str, str]:
    """Tags of a registered version."""
    tags = {"target": model.name, "kind": model.modality.kind}
    for name in ("job", "arm", "seed", "shots", "val_accuracy", "test_accuracy"):
        if model.made_with.get(name) is not None:
            tags[name] = str(model.made_with[name])
    return tags
