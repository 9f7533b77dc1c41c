"""Every analysis of a frozen representation in one go, each beside its reference.

The reference of a trained network is itself before training: what an untrained network already
shows is owed to the architecture and to the inputs, not to what was learnt.

Shape legend: N samples, D features, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from uml_core.analysis.alignment import Alignment, linear_cka, mutual_knn
from uml_core.analysis.confusion import Confusion, confusion
from uml_core.analysis.decision_plane import DecisionPlane, decision_plane
from uml_core.analysis.margins import Margins, functional_margins
from uml_core.analysis.neurons import Neurons, multimodal_neurons
from uml_core.analysis.prototypes import Prototypes, class_means, prototype_map
from uml_core.analysis.rank import EffectiveRank, effective_rank
from uml_core.analysis.separability import Separability, separability
from uml_core.errors import UserError
from uml_core.readout import Readout, judge

TRAINED, UNTRAINED = "trained", "untrained"
MAX_NEIGHBOURS = 10  # of mutual kNN; fewer where there are few items
CLASSES_APART = 4  # up to so many classes get correlations of their own (paper Fig 10)


@dataclass(frozen=True)
class Twin:
    """Labelled features of the same N samples under the trained and the untrained network.

    trained, untrained (N, D); labels (N,), -1 = unlabelled
    """

    trained: np.ndarray
    untrained: np.ndarray
    labels: np.ndarray

    def states(self) -> Iterator[tuple[str, np.ndarray]]:
        """("trained", features (N, D)), ("untrained", features (N, D))."""
        yield TRAINED, self.trained
        yield UNTRAINED, self.untrained


@dataclass(frozen=True)
class Pairs:
    """N things seen in the target (`target`) and in another modality (`other`), row by row."""

    target: Twin
    other: Twin


@dataclass(frozen=True)
class Suite:
    """What was measured. Keys of dicts name what is shown side by side.

    alignment      comparison -> linear CKA and mutual kNN
    margins, separability, ranks   state (and modality) -> result
    prototypes, neurons            auxiliary modality -> result
    confusion      of the trained network
    left_out       analysis, or "analysis: modality" -> why it could not be done
    """

    alignment: dict[str, list[Alignment]]
    margins: dict[str, Margins]
    separability: dict[str, Separability]
    ranks: dict[str, EffectiveRank]
    prototypes: dict[str, Prototypes]
    neurons: dict[str, Neurons]
    confusion: Confusion
    plane: DecisionPlane | None
    left_out: dict[str, str] = field(default_factory=dict)


def analyse(
    target: str,
    test: Twin,
    readouts: Mapping[str, Readout],
    auxiliary: Mapping[str, Twin],
    pairs: Mapping[str, Pairs | str],
) -> Suite:
    """All analyses of section 4 that one trained network allows.

    test       the target's test samples, all labelled
    readouts   "trained", "untrained" -> how each network decides
    auxiliary  modality -> its samples; without labels it is left out where classes are needed
    pairs      modality -> pairs with the target, or why there are none
    """
    left_out: dict[str, str] = {}
    decided = readouts[TRAINED]
    num_classes = int(max(test.labels.max(), decided.classes.max())) + 1
    predicted = judge(decided, test.trained, test.labels).predicted
    mixed = confusion(test.labels, predicted, num_classes)
    return Suite(
        alignment=_alignment(target, test, auxiliary, pairs, left_out),
        margins={s: _margins(readouts[s], x, test.labels) for s, x in test.states()},
        separability=_separability(test, left_out),
        ranks=_ranks(target, test, auxiliary, left_out),
        prototypes=_prototypes(test, decided, auxiliary, num_classes, left_out),
        neurons=_neurons(pairs, left_out),
        confusion=mixed,
        plane=_plane(decided, test, mixed, left_out),
        left_out=left_out,
    )


def _alignment(
    target: str,
    test: Twin,
    auxiliary: Mapping[str, Twin],
    pairs: Mapping[str, Pairs | str],
    left_out: dict[str, str],
) -> dict[str, list[Alignment]]:
    """Between modalities over class means, and over pairs where there are any; and what training
    moved: the target's samples under both networks."""
    found: dict[str, list[Alignment]] = {}
    for name, other in auxiliary.items():
        means = [
            _common_means(x, test.labels, y, other.labels)
            for (_, x), (_, y) in zip(test.states(), other.states(), strict=True)
        ]
        if len(means[0][0]) < 3:
            left_out[f"alignment: {name}"] = "needs at least three classes labelled in both"
            continue
        for state, (x, y) in zip((TRAINED, UNTRAINED), means, strict=True):
            found[f"{target} and {name}, class means, {state}"] = _aligned(x, y)
    for name, both in pairs.items():
        if isinstance(both, Pairs) and len(both.target.labels) >= 3:
            for state in (TRAINED, UNTRAINED):
                x, y = getattr(both.target, state), getattr(both.other, state)
                found[f"{target} and {name}, pairs, {state}"] = _aligned(x, y)
    if len(test.labels) >= 3:
        found[f"{target}, trained and untrained"] = _aligned(test.trained, test.untrained)
    return found


def _aligned(x: np.ndarray, y: np.ndarray) -> list[Alignment]:
    k = max(1, min(MAX_NEIGHBOURS, (len(x) - 1) // 2))
    return [linear_cka(x, y), mutual_knn(x, y, k)]


def _common_means(
    x: np.ndarray, x_labels: np.ndarray, y: np.ndarray, y_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Class means (K, D) and (K, E) of the classes that both sides have samples of."""
    num_classes = 1 + int(max(x_labels.max(initial=-1), y_labels.max(initial=-1)))
    x_means, x_counts = class_means(x, x_labels, num_classes)
    y_means, y_counts = class_means(y, y_labels, num_classes)
    both = (x_counts > 0) & (y_counts > 0)
    return x_means[both], y_means[both]


def _margins(readout: Readout, x: np.ndarray, labels: np.ndarray) -> Margins:
    """Margins in the readout's own scale; a class it does not know is left out."""
    known = np.isin(labels, readout.classes)
    rows = np.searchsorted(readout.classes, labels[known])
    return functional_margins(readout.lift(x[known]), rows, readout.head)


def _separability(test: Twin, left_out: dict[str, str]) -> dict[str, Separability]:
    try:
        return {state: separability(x, test.labels) for state, x in test.states()}
    except UserError as error:
        left_out["separability"] = error.problems[0]
        return {}


def _ranks(
    target: str, test: Twin, auxiliary: Mapping[str, Twin], left_out: dict[str, str]
) -> dict[str, EffectiveRank]:
    found = {}
    for name, twin in {target: test, **auxiliary}.items():
        for state, x in twin.states():
            try:
                found[f"{name}, {state}"] = effective_rank(x)
            except UserError as error:
                left_out[f"rank: {name}"] = error.problems[0]
    return found


def _prototypes(
    test: Twin,
    readout: Readout,
    auxiliary: Mapping[str, Twin],
    num_classes: int,
    left_out: dict[str, str],
) -> dict[str, Prototypes]:
    """Head rows against auxiliary class means; without a shared head the target's class means
    take its place, both sides centred on their mean."""
    found = {}
    for name, other in auxiliary.items():
        rows, features = readout.head, other.trained
        if readout.probe is not None:
            means, _ = class_means(test.trained, test.labels, num_classes)
            rows, features = means - test.trained.mean(0), features - features.mean(0)
        try:
            found[name] = prototype_map(rows, features, other.labels)
        except UserError as error:
            left_out[f"prototypes: {name}"] = error.problems[0]
    return found


def _neurons(pairs: Mapping[str, Pairs | str], left_out: dict[str, str]) -> dict[str, Neurons]:
    found = {}
    for name, both in pairs.items():
        if isinstance(both, str):
            left_out[f"neurons: {name}"] = both
            continue
        labels: np.ndarray | None = both.target.labels
        if len(np.unique(both.target.labels)) > CLASSES_APART:
            labels = None
        found[name] = multimodal_neurons(
            both.target.trained,
            both.other.trained,
            both.target.untrained,
            both.other.untrained,
            labels,
        )
    return found


def _plane(
    readout: Readout, test: Twin, mixed: Confusion, left_out: dict[str, str]
) -> DecisionPlane | None:
    if mixed.pair is None:
        left_out["plane"] = "no two classes were taken for each other"
        return None
    if not np.isin(mixed.pair, readout.classes).all():
        left_out["plane"] = "the most confused pair holds a class without training samples"
        return None
    head = np.zeros((int(max(readout.classes.max(), *mixed.pair)) + 1, readout.head.shape[1]))
    head[readout.classes] = readout.head
    try:
        return decision_plane(readout.lift(test.trained), test.labels, head, *mixed.pair)
    except UserError as error:
        left_out["plane"] = error.problems[0]
        return None
