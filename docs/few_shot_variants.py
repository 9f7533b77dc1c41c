"""What was tried to raise UML above images alone on the features of unaligned encoders.

    python docs/few_shot_variants.py path/to/vl-caltech --shots 1          # choose, on validation
    python docs/few_shot_variants.py path/to/vl-caltech --confirm NAME ... # fresh seeds, test set

Settings are those of the recipe `caltech`: learning rate from {1e-2, 1e-3}, text weight alpha from
{0.3, 1}, batches of 32 + 32, up to 3000 steps with early stopping on min(4, k) pictures per class,
which also choose the setting. Variants are then compared on the val shards, which no fit has seen;
the test shards are read under --confirm alone. Results: docs/few-shot.md.

Notation: x picture features, t text features, P projects pictures, Q projects texts, W the shared
head. "Geometry" is a ridge map between the class means of both modalities: classes are known to
both, pairs are not. "loo" leaves a text's own class out of the map it goes through.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipelines.running.memory import Order
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from uml_core.arms import build_fit
from uml_core.controls import derangement
from uml_core.evaluation import classifier_accuracy
from uml_core.heads.stacked import Rows, train_heads
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit
from uml_core.modalities.base import Batch
from uml_core.probes import few_shot_split
from uml_core.recipe import from_dict
from uml_core.specs import Recipe
from uml_core.statistics import paired_gain

SEEDS, FRESH, SHOTS = range(900, 906), range(1001, 1006), (1, 4)
RATES, ALPHAS, SMALL = (1e-2, 1e-3), (0.3, 1.0), (0.03, 0.1)
Set = tuple[Tensor, Tensor]  # (N, D) features, (N,) labels


@dataclass(frozen=True)
class Drawn:
    """One seed's samples: pictures to train on, to choose by and to judge by; all texts."""

    train: Set
    val: Set
    held: Set
    text: Set
    unlabelled: Tensor  # every picture of the train shards, without its label
    seed: int


Init = Callable[[UnpairedLearner, Drawn, Tensor], None]
Map = Callable[[Drawn, Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A way to bring both modalities before one head.

    stems    of pictures and texts: identity or linear
    centred  subtracts the train pictures' mean (texts: theirs) before the last normalisation
    mapped   texts -> what takes their place, fixed before training; sees labels as the arm does
    init     sets weights before the first step
    """

    says: str
    stems: tuple[str, str] = ("identity", "linear")
    width: int | None = None  # default: that of the side that is not projected
    centred: bool = False
    alphas: tuple[float, ...] = ALPHAS
    arm: str = "uml"
    mapped: Map | None = None
    init: Init | None = None
    scale: tuple[str, float] = ("fixed", 1.0)
    warmup: int = 0  # first steps that take texts alone


# ----------------------------------------------------------------------------- ingredients


def means(x: Tensor, y: Tensor) -> Tensor:
    """(C, D) class means."""
    return torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])


def ridge(source: Tensor, target: Tensor, strength: float) -> Tensor:
    """(D, E): the ridge map from rows of source (C, D) to rows of target (C, E), both centred."""
    gram = source @ source.T
    ridge = strength * gram.diag().mean() * torch.eye(len(gram))
    return source.T @ torch.linalg.solve(gram + ridge, target)


def geometry(strength: float, loo: bool) -> Map:
    """Texts in the pictures' space, by a ridge map between class means."""

    def mapped(drawn: Drawn, labels: Tensor) -> Tensor:
        x, t = means(*drawn.train), means(drawn.text[0], labels)
        texts, t, mean, x = drawn.text[0] - t.mean(0), t - t.mean(0), x.mean(0), x - x.mean(0)
        out = torch.empty(len(texts), x.shape[1])
        for c in range(len(t)):
            used = torch.arange(len(t)) != c if loo else slice(None)
            out[labels == c] = texts[labels == c] @ ridge(t[used], x[used], strength)
        return normalize(normalize(out) * x.norm(dim=1).mean() + mean)

    return mapped


def moments(drawn: Drawn, labels: Tensor) -> Tensor:
    """Second moments matched without labels: the texts' i-th axis becomes the pictures' i-th."""
    texts, pictures = (z - z.mean(0) for z in (drawn.text[0], drawn.unlabelled))
    u, _, v = torch.linalg.svd(texts, full_matrices=False)
    _, size, axes = torch.linalg.svd(pictures, full_matrices=False)
    n = min(len(size), len(v))
    return normalize((u[:, :n] * size[:n]) @ axes[:n])


def low_rank(rank: int) -> Map:
    """Texts in their first principal axes."""

    def mapped(drawn: Drawn, labels: Tensor) -> Tensor:
        texts = drawn.text[0] - drawn.text[0].mean(0)
        return normalize(texts @ torch.linalg.svd(texts, full_matrices=False)[2][:rank].T)

    return mapped


def principal(white: bool) -> Init:
    """P starts as the best linear autoencoder of the unlabelled pictures (whitened)."""

    def init(learner: UnpairedLearner, drawn: Drawn, labels: Tensor) -> None:
        weight = learner.get_parameter("stems.image.projection.weight").data
        _, size, axes = torch.linalg.svd(
            drawn.unlabelled - drawn.unlabelled.mean(0), full_matrices=False
        )
        axes = axes[: len(weight)]
        weight.copy_(axes / size[: len(axes), None] * size[0] if white else axes)

    return init


def orthogonal(modality: str) -> Init:
    """The projection of this modality starts orthogonal."""

    def init(learner: UnpairedLearner, drawn: Drawn, labels: Tensor) -> None:
        nn.init.orthogonal_(learner.get_parameter(f"stems.{modality}.projection.weight"))

    return init


def residual(learner: UnpairedLearner, drawn: Drawn, labels: Tensor) -> None:
    """The square P starts as the identity: pictures pass, and learn a correction."""
    nn.init.eye_(learner.get_parameter("stems.image.projection.weight"))


def from_geometry(learner: UnpairedLearner, drawn: Drawn, labels: Tensor) -> None:
    """Q starts as the ridge map between class means, and goes on learning."""
    x, t = means(*drawn.train), means(drawn.text[0], labels)
    weight = learner.get_parameter("stems.text.projection.weight")
    weight.data.copy_(ridge(t - t.mean(0), x - x.mean(0), 1.0).T)


P = ("linear", "identity")
EYE = ("identity", "identity")
VARIANTS = {
    "P": Variant("pictures projected into the texts' space (the recipe)", P),
    "P centred": Variant("the same, both centred", P, centred=True),
    "P orthogonal": Variant("P starts orthogonal", P, init=orthogonal("image")),
    "P principal": Variant("P pre-trained on unlabelled pictures", P, init=principal(False)),
    "P whitened": Variant("the same, whitened", P, init=principal(True)),
    "P temperature": Variant("learnable logit scale from 10", P, scale=("learned", 10.0)),
    "P class means": Variant("head starts at the texts' class means", P, arm="uml_init"),
    "P text first": Variant("200 steps of texts before pictures", P, warmup=200),
    "Q": Variant("texts projected into the pictures' space"),
    "Q small": Variant("the same, alpha from {0.03, 0.1}", alphas=SMALL),
    "Q centred": Variant("both centred", centred=True),
    "Q orthogonal": Variant("Q starts orthogonal", init=orthogonal("text")),
    "Q low rank": Variant("texts in 32 principal axes first", mapped=low_rank(32)),
    "Q geometry": Variant("Q starts as the map of class means", init=from_geometry),
    "residual": Variant("square P from the identity, Q", ("linear", "linear"), init=residual),
    "expansion": Variant("both projected to width 2048", ("linear", "linear"), width=2048),
    "moments": Variant("texts with the pictures' second moments, fixed", EYE, mapped=moments),
    "geometry": Variant("texts by the map of class means, fixed", EYE, mapped=geometry(1, False)),
    "geometry loo": Variant("the same, loo", EYE, mapped=geometry(1, True)),
    "geometry loo 3": Variant("the same, ridge 3", EYE, mapped=geometry(3, True)),
    "geometry loo small": Variant(
        "loo, alpha from {0.03, 0.1}", EYE, mapped=geometry(1, True), alphas=SMALL
    ),
    "geometry loo centred": Variant(
        "loo, centred, alpha from {0.03, 0.1}",
        EYE,
        mapped=geometry(1, True),
        alphas=SMALL,
        centred=True,
    ),
}
BASELINES = {
    "direct": Variant("head on the pictures' features", arm="unimodal"),
    "direct centred": Variant("the same, centred", arm="unimodal", centred=True),
}


# ------------------------------------------------------------------------------------ runs


def load(root: Path, part: str) -> Set:
    """All samples of one split, rows of length 1."""
    x, y = [], []
    for path in sorted(root.glob(f"{part}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content and member.name.endswith(".npy"):
                    x.append(np.load(io.BytesIO(content.read()), allow_pickle=False))
                elif content and member.name.endswith(".cls"):
                    y.append(int(content.read()))
    return normalize(torch.from_numpy(np.stack(x).astype(np.float32))), torch.tensor(y)


def draw(parts: Mapping[str, Set], held: str, shots: int, seed: int) -> Drawn:
    """One seed's samples."""
    x, y = parts["image-train"]
    train, val = (
        torch.from_numpy(rows) for rows in few_shot_split(y.numpy(), shots, seed, modality="image")
    )
    return Drawn((x[train], y[train]), (x[val], y[val]), parts[held], parts["text-train"], x, seed)


def centre(drawn: Drawn) -> Drawn:
    """Every modality without its mean (pictures: of the labelled ones), at length 1 again."""
    mean = drawn.train[0].mean(0)
    text = drawn.text[0]
    return replace(
        drawn,
        train=(normalize(drawn.train[0] - mean), drawn.train[1]),
        val=(normalize(drawn.val[0] - mean), drawn.val[1]),
        held=(normalize(drawn.held[0] - mean), drawn.held[1]),
        text=(normalize(text - text.mean(0)), drawn.text[1]),
        unlabelled=normalize(drawn.unlabelled - mean),
    )


def run(
    variant: Variant,
    parts: Mapping[str, Set],
    held: str,
    shots: int,
    seeds: Sequence[int],
    permuted: bool = False,
) -> list[float]:
    """Accuracy in percent per seed on the held samples, at the setting that validation chose."""
    arm = "uml_permuted" if permuted else variant.arm
    made = [one for seed in seeds for one in _grid(variant, arm, draw(parts, held, shots, seed))]
    train_heads(
        [one.fit for one in made],
        [one.rows for one in made],
        [classifier_accuracy("image", [Batch(*one.drawn.val)]) for one in made],
        schedule=made[0].recipe.schedule(),
    )
    found: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for one in made:
        one.fit.restore_best()
        accuracy = classifier_accuracy("image", [Batch(*one.drawn.held)])(one.fit)
        found.setdefault(one.setting, []).append((one.fit.best_accuracy, accuracy))
    best = max(found, key=lambda setting: statistics.mean(val for val, _ in found[setting]))
    return [accuracy for _, accuracy in found[best]]


@dataclass(frozen=True)
class Made:
    """A fit before its first step, and what it takes."""

    setting: tuple[float, float]  # learning rate, alpha
    fit: Fit
    rows: Mapping[str, Rows]
    drawn: Drawn
    recipe: Recipe


def _grid(variant: Variant, arm: str, drawn: Drawn) -> Iterator[Made]:
    """The fits of one seed, one per setting."""
    if variant.centred:
        drawn = centre(drawn)
    text, labels = drawn.text
    classes = int(labels.max()) + 1
    seen = labels
    if arm == "uml_permuted":
        seen = torch.from_numpy(derangement(classes, drawn.seed))[labels]
    if variant.mapped is not None:
        text = variant.mapped(drawn, seen)
    recipe = from_dict(_recipe(variant, drawn.train[0].shape[1], text.shape[1]))
    rows = {
        name: Rows(x, y, _order(len(x), drawn.seed, name))
        for name, (x, y) in {"image": drawn.train, "text": (text, labels)}.items()
    }
    for lr in RATES:
        for alpha in (1.0,) if arm == "unimodal" else variant.alphas:
            fit = build_fit(
                recipe,
                arm,
                drawn.seed,
                {"lr": lr} if arm == "unimodal" else {"lr": lr, "weight": alpha},
                {name: spec.build() for name, spec in recipe.modalities.items()},
                num_classes=classes,
                head_batches=lambda name: [Batch(text, labels)],
            )
            if variant.init is not None:
                variant.init(fit.learner, drawn, seen)
            yield Made((lr, alpha), fit, rows, drawn, recipe)


def _order(count: int, seed: int, name: str) -> Order:
    """The rows of each batch, as a comparison draws them."""
    bad = Quarantine(None, modality=name, rows=count)
    return Order(Plan(count, 32, seed, name), np.ones(count, bool), bad)


def _recipe(variant: Variant, pictures: int, texts: int) -> dict[str, Any]:
    stems = dict(zip(("image", "text"), variant.stems, strict=True))
    width = variant.width or (texts if stems["text"] == "identity" else pictures)
    train: dict[str, Any] = {
        "steps": 3000,
        "batch_size": 32,
        "weight_decay": 0.01,
        "lr_warmup": 50,
        "validate_every": 50,
        "patience": 10,
        "gradients_every": None,
    }
    if variant.warmup:
        train["warmup"] = {"modality": "text", "steps": variant.warmup}
    return {
        "name": "variant",
        "data_root": ".",
        "target": "image",
        "modalities": {
            name: {"kind": "vector", "train": name, "dim": dim, "stem": stems[name]}
            for name, dim in (("image", pictures), ("text", texts))
        },
        "model": {
            "width": width,
            "trunk": "none",
            "heads": 1,
            "logit_scale": variant.scale[0],
            "logit_scale_value": variant.scale[1],
        },
        "train": train,
    }


def main() -> None:
    """Prints one row per variant: accuracy, and its difference to the direct head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--confirm", nargs="+", metavar="NAME", choices=[*VARIANTS])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*VARIANTS])
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS, metavar="K")
    args = parser.parse_args()
    held, seeds = ("image-test", FRESH) if args.confirm else ("image-val", SEEDS)
    parts = {part: load(args.root, part) for part in ("image-train", held, "text-train")}
    names = args.confirm or args.only or [*VARIANTS]
    for shots in args.shots:
        base = {
            name: run(variant, parts, held, shots, seeds) for name, variant in BASELINES.items()
        }
        for name, found in base.items():
            print(f"k={shots} {name:21s} {statistics.mean(found):.1f}", flush=True)
        for name in names:
            found = run(VARIANTS[name], parts, held, shots, seeds)
            row = f"k={shots} {name:21s} {statistics.mean(found):.1f}"
            row += f"  over direct {_told(found, base['direct'])}"
            if VARIANTS[name].centred:
                row += f"  over direct centred {_told(found, base['direct centred'])}"
            if args.confirm:
                control = run(VARIANTS[name], parts, held, shots, seeds, permuted=True)
                row += f"  over control {_told(found, control)}"
            print(row, flush=True)


def _told(a: Sequence[float], b: Sequence[float]) -> str:
    gain = paired_gain(a, b)
    assert gain.ci95 is not None
    return f"{gain.mean:+.2f} ({gain.ci95[0]:+.2f} to {gain.ci95[1]:+.2f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
