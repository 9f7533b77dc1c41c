"""Test sets from other circumstances: other pictures of the same things, perhaps fewer classes.

The paper tests ImageNet probes on ImageNet-V2, -Sketch, -A and -R (4.2, E.3); the last two hold a
part of the classes only, so a label map says what each class of the set means to the model.

Shape legend: N samples, D features, C classes of the model, S classes of the set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, independent_difference
from uml_core.errors import UserError, near
from uml_core.probes import ClassResult, FittedProbe, checked, per_class
from uml_core.readout import percent


@dataclass(frozen=True)
class LabelMap:
    """How the classes of a shifted test set stand for the classes of the training set.

    targets  (S,) int64: label of the training set for each class of the test set, -1 = none
    missing  names of the test set's classes that have none; their samples are left out
    """

    targets: np.ndarray
    missing: tuple[str, ...]


@dataclass(frozen=True)
class ShiftResult:
    """A rule on a shifted test set, and on the own test set under the same conditions.

    accuracy    percent, with a bootstrap interval over samples
    own         percent on the own test set's samples of the same classes
    drop        own - accuracy in points; the two sets are resampled independently
    samples     judged; own_samples likewise
    skipped     samples of classes missing from the map; unlabelled: without any label
    classes     training classes that could be predicted
    per_class   keyed by the training set's labels
    """

    accuracy: Estimate
    own: Estimate
    drop: Estimate
    samples: int
    own_samples: int
    skipped: int
    unlabelled: int
    classes: int
    missing: tuple[str, ...]
    per_class: dict[int, ClassResult]


def label_map(
    test_classes: Sequence[str],
    train_classes: Sequence[str],
    mapping: Mapping[str, str | None] | None = None,
) -> LabelMap:
    """Map test classes to training classes, by `mapping` {test name: train name} or equal names.

    Several test classes may stand for one training class. Classes that find no partner, or whose
    partner is None, are listed in `missing`. Raises UserError for names in `mapping` that do not
    exist.
    """
    problems = []
    for source, target in (mapping or {}).items():
        if source not in test_classes:
            hint = near(source, test_classes)
            problems.append(f"label map: the test set has no class '{source}'{hint}")
        if target is not None and target not in train_classes:
            hint = near(target, train_classes)
            problems.append(f"label map: the training set has no class '{target}'{hint}")
    if problems:
        raise UserError(problems)
    index = {name: i for i, name in enumerate(train_classes)}
    wanted = [name if mapping is None else mapping.get(name) for name in test_classes]
    targets = np.array([-1 if name is None else index.get(name, -1) for name in wanted], np.int64)
    missing = tuple(n for n, t in zip(test_classes, targets, strict=True) if t < 0)
    if len(missing) == len(targets):
        raise UserError("label map: no class of the test set stands for a training class")
    return LabelMap(targets, missing)


def shifted_test(
    rule: FittedProbe,
    x: np.ndarray,
    y: np.ndarray,
    mapped: LabelMap,
    own_x: np.ndarray,
    own_y: np.ndarray,
) -> ShiftResult:
    """A rule on a shifted test set: x (N, D), y (N,) in the set's own labels, -1 = unlabelled.

    own_x, own_y: the own test set in the training set's labels. Only training classes that some
    test class maps to can be predicted, on both sides, as is usual for test sets with a part of
    the classes (paper 3.6, ImageNet-A and -R); so `drop` compares like with like. Raises
    UserError for labels outside the map or when nothing remains on either side.
    """
    labelled = np.asarray(y) >= 0
    unlabelled = int((~labelled).sum())
    x, y = np.asarray(x)[labelled], np.asarray(y)[labelled]
    if len(y) and y.max() >= len(mapped.targets):
        raise UserError(
            f"test labels go up to {y.max()} but the label map has {len(mapped.targets)} classes"
        )
    truth = mapped.targets[y]
    kept, own_kept = truth >= 0, np.isin(own_y, mapped.targets[mapped.targets >= 0])
    if not kept.any():
        raise UserError("no test sample belongs to a class of the label map")
    if not own_kept.any():
        raise UserError("the own test set has no sample of the label map's classes")
    legal = np.isin(rule.classes, mapped.targets)
    predicted, truth = _among(rule, x[kept], truth[kept], legal)
    own_predicted, own_truth = _among(rule, own_x[own_kept], np.asarray(own_y)[own_kept], legal)
    right, own_right = predicted == truth, own_predicted == own_truth
    return ShiftResult(
        accuracy=percent(right),
        own=percent(own_right),
        drop=independent_difference(100.0 * own_right, 100.0 * right),
        samples=len(truth),
        own_samples=len(own_truth),
        skipped=int((~kept).sum()),
        unlabelled=unlabelled,
        classes=int(legal.sum()),
        missing=mapped.missing,
        per_class=per_class(truth, predicted),
    )


def _among(
    rule: FittedProbe, x: np.ndarray, y: np.ndarray, legal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true) labels where only the legal classes can be predicted."""
    x, y = checked("test", x, y)
    return rule.classes[np.where(legal, rule.scores(x), -np.inf).argmax(1)], y
