"""The model to take home: the target's path alone, from bytes to class, in two files.

    from uml_core.export import load
    model = load("exported")
    found = model.predict([open("photo.jpg", "rb").read()])
    found.classes, found.probabilities, found.embeddings

`model.safetensors` holds the weights (stem, trunk, classifier of the target), `model.json` all that
is needed to use them: the kind of input and its preprocessing, the sizes of the model, the class
names, what encoder made the features it takes, and the run it comes from. Neither can hold code.

Shape legend: N samples, C classes, D width of the model.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from uml_core.encoders.trainable import architecture_only
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS, Batch, Modality
from uml_core.specs import ModelSpec
from uml_core.typed import build

WEIGHTS, FACTS = "model.safetensors", "model.json"
ENCODER = "encoder"  # configuration of a network that was trained along; its weights are in WEIGHTS
FORMAT = 1
MAX_BYTES = 64 << 20  # of model.json
BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """What a model says of N samples.

    classes        names of the likeliest classes; None of a self-supervised model
    probabilities  (N, C) float32, None likewise
    embeddings     (N, D) float32: what the classifier sees, or a probe would
    """

    classes: list[str] | None
    probabilities: np.ndarray | None
    embeddings: np.ndarray


@dataclass(frozen=True)
class TargetModel:
    """The target's path of a learner with everything around it.

    name       of the target modality
    learner    of this one modality, in evaluation mode
    classes    names in label order; None in the self-supervised setting
    encoder    of features: what made them, as index.json has it, else None
    made_with  run, arm, seed, accuracies: for people, nothing depends on it
    """

    name: str
    learner: UnpairedLearner
    classes: tuple[str, ...] | None
    encoder: dict[str, Any] | None = None
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """The kind of input with its preprocessing."""
        return self.learner.modalities[self.name]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.learner.parameters()).device

    def decode(self, sample: Any) -> Tensor:
        """One input, decoded to the shape that its kind has.

        sample: bytes of a file, a str of text, or numbers of an array. Raises BadSample for what
        cannot be used.
        """
        return self.decode_file(sample)

    def decode_file(self, sample: Any, suffix: str = "") -> Tensor:
        """As `decode`, to the same shape, of a file with this suffix; else the content tells."""
        data, known = payload(sample), self.modality.suffixes
        if suffix not in known:
            suffix = "npz" if "npz" in known and data[:2] == b"PK" else known[0]
        return self.modality.decode(data, suffix)

    @torch.no_grad()
    def run(self, items: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
        """Decoded inputs as one batch -> probabilities (N, C) or None, embeddings (N, D)."""
        x, mask = self.modality.collate(items)
        batch = Batch(x, torch.full((len(items),), -1), mask).to(self.device)
        embeddings = self.learner.embed(self.name, batch).float()
        if self.classes is None:
            return None, embeddings
        return self.learner.classify(self.name, embeddings).softmax(1), embeddings

    def predict(self, samples: Sequence[Any], batch_size: int = BATCH) -> Prediction:
        """Classes, probabilities and embeddings of samples (see `decode`), in their order.

        Raises BadSample for the first sample that cannot be used, UserError where there is none.
        """
        if not len(samples):
            raise UserError("there is no sample to predict")
        parts = [
            self.run([self.decode(sample) for sample in samples[i : i + batch_size]])
            for i in range(0, len(samples), batch_size)
        ]
        embeddings = torch.cat([part for _, part in parts]).cpu().numpy()
        if self.classes is None:
            return Prediction(None, None, embeddings)
        scores = [scores for scores, _ in parts if scores is not None]
        probabilities = torch.cat(scores).cpu().numpy()
        names = [self.classes[k] for k in probabilities.argmax(1)]
        return Prediction(names, probabilities, embeddings)

    def facts(self) -> dict[str, Any]:
        """What model.json holds."""
        return {
            "format": FORMAT,
            "target": {
                "name": self.name,
                "kind": self.modality.kind,
                "preprocessing": dataclasses.asdict(self.modality.options),
            },
            "model": dataclasses.asdict(self.learner.spec),
            "classes": None if self.classes is None else list(self.classes),
            "encoder": self.encoder,
            "made_with": self.made_with,
        }

    def save(self, folder: str | Path) -> None:
        """Writes both files into `folder`, which is made where it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.cpu().contiguous() for k, v in self.learner.state_dict().items()}
        save_file(weights, folder / f"{WEIGHTS}.part")
        os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
        stem: Any = self.learner.stems[self.name]
        if hasattr(stem, "save_architecture"):
            stem.save_architecture(folder / ENCODER)
        self.save_facts(folder)

    def save_facts(self, folder: str | Path) -> None:
        """Writes model.json alone, beside weights that lie in `folder` already."""
        text = json.dumps(self.facts(), indent=1, ensure_ascii=False)
        part = Path(folder) / f"{FACTS}.part"
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, Path(folder) / FACTS)


def target_model(
    name: str,
    modality: Modality,
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    classes: Sequence[str] | None,
    *,
    encoder: dict[str, Any] | None = None,
    made_with: dict[str, Any] | None = None,
) -> TargetModel:
    """The model of weights (a state dict, tensors of any shape) that may hold more than its path.

    modality  of the target, with its input sizes known; classes: None when self-supervised

    Raises UserError where the weights are of another model.
    """
    # Trained weights take the place of a language model's, whose folder may be gone by now.
    spec = dataclasses.replace(spec, trunk_init=None)
    with architecture_only():
        learner = UnpairedLearner(
            {name: modality}, spec, num_classes=None if classes is None else len(classes)
        )
    wanted = learner.state_dict().keys()
    try:
        learner.load_state_dict({k: v for k, v in weights.items() if k in wanted})
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[-1].split())
        raise UserError(f"the weights do not fit the model: {reason}") from error
    names = None if classes is None else tuple(classes)
    return TargetModel(name, learner.eval(), names, encoder, made_with or {})


def load(folder: str | Path, device: torch.device | str = "cpu") -> TargetModel:
    """The model in a folder that `TargetModel.save` wrote.

    Raises UserError with every problem where it is missing, damaged or of a newer format.
    """
    folder = Path(folder)
    facts = _read_facts(folder / FACTS)
    problems: list[str] = []
    kind = facts["target"].get("kind")
    if kind not in KINDS:
        raise UserError(f"{folder / FACTS}: '{kind}' is no kind of data that this version knows")
    fields = facts["target"].get("preprocessing", {})
    options = build(KINDS[kind].Options, fields, "target.preprocessing", problems)
    spec = build(ModelSpec, facts["model"], "model", problems)
    if problems:
        raise UserError([f"{folder / FACTS}: {problem}" for problem in problems])
    if (folder / ENCODER).is_dir():
        options = dataclasses.replace(options, encoder=str(folder / ENCODER))
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error}") from error
    try:
        made = target_model(
            facts["target"]["name"],
            KINDS[kind](options),
            spec,
            weights,
            facts["classes"],
            encoder=facts["encoder"],
            made_with=facts["made_with"],
        )
    except UserError as error:
        raise UserError([f"{folder}: {problem}" for problem in error.problems]) from error
    made.learner.to(device)
    return made


def _read_facts(path: Path) -> dict[str, Any]:
    """model.json, with the types that everything else relies on."""
    try:
        with open(path, "rb") as file:
            facts = json.loads(file.read(MAX_BYTES + 1))
        if facts["format"] > FORMAT:
            raise UserError(f"{path} is of a newer format ({facts['format']}): update this package")
        classes, target = facts["classes"], facts["target"]
        typed = (
            isinstance(target["name"], str)
            and isinstance(target["preprocessing"], dict)
            and isinstance(facts["model"], dict)
            and isinstance(facts["encoder"], dict | None)
            and isinstance(facts["made_with"], dict)
            and (classes is None or all(isinstance(name, str) for name in classes))
        )
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no exported model ({FACTS}): `uml export RUN` makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as the facts of a model: {error}") from error
    if not typed:
        raise UserError(f"{path}: its fields are not of the types that they must have")
    return facts


def payload(sample: Any) -> bytes:
    """A sample as the bytes of a file: bytes as they are, text as UTF-8, numbers as npy."""
    if isinstance(sample, bytes | bytearray | memoryview):
        return bytes(sample)
    if isinstance(sample, str):
        return sample.encode()
    stream = io.BytesIO()
    np.save(stream, np.asarray(sample, dtype=np.float32), allow_pickle=False)
    return stream.getvalue()
