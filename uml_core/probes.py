"""Evaluation of a frozen representation: linear probe, kNN, few-shot splits.

Pure functions on arrays. Shape legend: N samples, D features, C classes. Labels are int64 class
indices; every accuracy is in percent.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from uml_core.errors import RunError, UserError

GRID_C = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
GRID_K = (1, 3, 5, 11, 21, 51)
MAX_VAL_PER_CLASS = 4
VAL_SHARE = 0.1
_KNN_BLOCK = 2**24  # entries of one similarity block: bounds memory at 128 MiB


@dataclass(frozen=True)
class ClassResult:
    """One class of a test set: its number of samples, recall and precision in percent.

    `precision` is None where the class was never predicted.
    """

    samples: int
    recall: float
    precision: float | None


@dataclass(frozen=True)
class ProbeResult:
    """What a probe reached. `chosen` holds what validation picked, e.g. ``{"C": 0.1}``.

    `test_accuracy` is None and `per_class` empty when no test set was given.
    """

    val_accuracy: float
    test_accuracy: float | None
    chosen: dict[str, float]
    per_class: dict[int, ClassResult]


class FittedProbe(Protocol):
    """A probe with its choices made; `classes` (C,) are the labels of the columns of `scores`."""

    @property
    def classes(self) -> np.ndarray:
        """(C,) labels, in the order of the columns of `scores`."""
        ...

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) scores, the largest of a row for the predicted class."""
        ...


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on features standardised with the training statistics."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weight: np.ndarray  # (C, D)
    bias: np.ndarray  # (C,)
    classes: np.ndarray  # (C,)
    C: float

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) logits."""
        return (_features(x) - self.mean) / self.scale @ self.weight.T + self.bias


@dataclass(frozen=True)
class KnnProbe:
    """Majority vote of the k training samples of largest cosine similarity."""

    train_x: np.ndarray  # (N, D), unit rows
    train_y: np.ndarray  # (N,) positions in `classes`
    classes: np.ndarray  # (C,)
    k: int

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) votes; equal votes are ordered by summed similarity."""
        near_y, near_sim = _neighbours(self.train_x, self.train_y, _unit(_features(x)), self.k)
        return _votes(near_y, near_sim, len(self.classes), self.k)


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Share of equal entries of two (N,) label arrays, in percent."""
    if len(y) == 0:
        raise UserError("accuracy needs at least one sample")
    return 100.0 * float(np.mean(np.asarray(y) == np.asarray(predicted)))


def per_class(y: np.ndarray, predicted: np.ndarray) -> dict[int, ClassResult]:
    """Recall and precision of every class that occurs in the true labels `y` (N,)."""
    y, predicted = np.asarray(y), np.asarray(predicted)
    results = {}
    for c in np.unique(y):
        hits = int(np.sum((y == c) & (predicted == c)))
        samples, calls = int(np.sum(y == c)), int(np.sum(predicted == c))
        precision = 100.0 * hits / calls if calls else None
        results[int(c)] = ClassResult(samples, 100.0 * hits / samples, precision)
    return results


def predict(probe: FittedProbe, x: np.ndarray) -> np.ndarray:
    """(N, D) features -> (N,) labels of the largest score."""
    return probe.classes[probe.scores(x).argmax(1)]


def fit_linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    grid: Sequence[float] = GRID_C,
    max_iter: int = 1000,
) -> tuple[LinearProbe, float]:
    """L2 logistic regression (lbfgs), C (inverse penalty) from `grid` by validation accuracy.

    train_x (N, D), train_y (N,), likewise val. Returns the probe and its validation accuracy.
    Equal accuracies take the smallest C, the strongest penalty. Features are standardised with
    the mean and standard deviation of train_x; constant features are only centred.
    Raises UserError for unusable labels or shapes, RunError for features that are not finite.
    """
    # Here, not above: every process of a job imports this module, and few fit a probe.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train_x, train_y = checked("train", train_x, train_y)
    val_x, val_y = checked("val", val_x, val_y)
    if len(np.unique(train_y)) < 2:
        raise UserError("a linear probe needs training samples of at least two classes")
    mean, scale = train_x.mean(0), train_x.std(0)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)
    inputs = (train_x - mean) / scale
    best: tuple[LinearProbe, float] | None = None
    # Ascending C with a warm start: each optimum is the start of the next, less regular one.
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    for c in sorted(grid):
        model.set_params(C=c)
        with warnings.catch_warnings():
            # An optimum not reached to tolerance at a weak penalty is a legal candidate.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes")  # one shot per class
            model.fit(inputs, train_y)
        weight, bias = model.coef_.copy(), model.intercept_.copy()
        if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([-weight, weight]) / 2, np.r_[-bias, bias] / 2
        probe = LinearProbe(mean, scale, weight, bias, model.classes_, c)
        val_accuracy = accuracy(val_y, predict(probe, val_x))
        if best is None or val_accuracy > best[1]:
            best = probe, val_accuracy
    if best is None:
        raise UserError("the grid of C is empty")
    return best


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    test_x: np.ndarray | None = None,
    test_y: np.ndarray | None = None,
    grid: Sequence[float] = GRID_C,
    max_iter: int = 1000,
) -> ProbeResult:
    """Linear probe of frozen features; the test set is read once, with the chosen C.

    Arguments and errors as `fit_linear_probe`; test_x (N, D), test_y (N,) are optional.
    """
    probe, val_accuracy = fit_linear_probe(train_x, train_y, val_x, val_y, grid, max_iter)
    return _result(probe, val_accuracy, {"C": probe.C}, test_x, test_y)


def fit_knn_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    grid: Sequence[int] = GRID_K,
) -> tuple[KnnProbe, float]:
    """Cosine kNN with k from `grid` (values above N are left out) by validation accuracy.

    Shapes and errors as `fit_linear_probe`. Equal accuracies take the smallest k.
    """
    train_x, train_y = checked("train", train_x, train_y)
    val_x, val_y = checked("val", val_x, val_y)
    ks = [k for k in sorted(grid) if 1 <= k <= len(train_x)]
    if not ks:
        raise UserError(f"no k of {list(grid)} fits {len(train_x)} training samples")
    classes, positions = np.unique(train_y, return_inverse=True)
    unit = _unit(train_x)
    near_y, near_sim = _neighbours(unit, positions, _unit(val_x), ks[-1])
    found = []
    for k in ks:
        votes = _votes(near_y, near_sim, len(classes), k)
        found.append(accuracy(val_y, classes[votes.argmax(1)]))
    best = int(np.argmax(found))
    return KnnProbe(unit, positions, classes, ks[best]), found[best]


def knn_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    test_x: np.ndarray | None = None,
    test_y: np.ndarray | None = None,
    grid: Sequence[int] = GRID_K,
) -> ProbeResult:
    """kNN probe of frozen features; the test set is read once, with the chosen k.

    Arguments and errors as `fit_knn_probe`; test_x (N, D), test_y (N,) are optional.
    """
    probe, val_accuracy = fit_knn_probe(train_x, train_y, val_x, val_y, grid)
    return _result(probe, val_accuracy, {"k": probe.k}, test_x, test_y)


def few_shot_split(
    labels: np.ndarray,
    shots: int | None,
    seed: int,
    val_per_class: int | None = None,
    classes: Sequence[str] | None = None,
    *,
    modality: str,
    allow_absent: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (train, val) of a k-shot split, both sorted; rows labelled -1 are never drawn.

    labels (N,). Per class the draw depends only on (seed, modality, class) and the class's rows:
    of two modalities that are stored pair by pair it takes other rows, or few shots of unpaired
    data would be few pairs. Train
    takes the first `shots` rows of the drawn order and val the last `val_per_class` (default
    min(4, shots)), so subsets are nested over k and the val rows of any k that fits are outside
    the train rows of every k that fits. With shots None, val is 10 % of each class (at least
    one; or `val_per_class`) and train all the rest. `classes` gives the names in label order;
    with it, classes without any sample are an error too, unless `allow_absent` (auxiliary data).
    Raises UserError that lists every class with too few samples. (Paper 2.3, few-shot val size.)
    """
    if shots is not None and shots < 1:
        raise UserError(f"shots must be at least 1, or null for all samples; it is {shots}")
    if val_per_class is not None and val_per_class < 0:
        raise UserError(f"val_per_class must not be negative; it is {val_per_class}")
    labels = np.asarray(labels)
    if classes is not None and len(labels) and labels.max() >= len(classes):
        raise UserError(f"label {labels.max()} occurs but there are {len(classes)} class names")
    order = np.argsort(labels, kind="stable")
    known = classes is not None and not allow_absent
    ids = range(len(classes or ())) if known else np.unique(labels[labels >= 0])
    starts = np.searchsorted(labels[order], ids, side="left")
    stops = np.searchsorted(labels[order], ids, side="right")
    train, val, problems = [], [], []
    name = zlib.crc32(modality.encode())
    for c, start, stop in zip(ids, starts, stops, strict=True):
        n = int(stop - start)
        num_val = _num_val(n, shots) if val_per_class is None else val_per_class
        num_train = max(n - num_val, 1) if shots is None else shots
        if num_train + num_val > n:
            called = f"'{classes[c]}'" if classes is not None else str(int(c))
            problems.append(
                f"class {called} has {n} samples but {num_train} for training and {num_val} for "
                "validation are needed; use fewer shots or add samples"
            )
            continue
        drawn = np.random.default_rng([seed, name, int(c)]).permutation(order[start:stop])
        train.append(drawn[:num_train])
        val.append(drawn[n - num_val :])
    if problems:
        raise UserError(problems)
    if not train:
        raise UserError("no labelled sample to draw from")
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def few_val(shots: int) -> int:
    """Validation samples per class beside so many for training (paper 2.3)."""
    return min(MAX_VAL_PER_CLASS, shots)


def _num_val(n: int, shots: int | None) -> int:
    return few_val(shots) if shots is not None else max(1, int(VAL_SHARE * n + 0.5))


def _features(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1.0)


def checked(name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (N, D) as float64 and y (N,) as int64, fit for a probe; raises what `linear_probe` does."""
    x, y = _features(x), np.asarray(y)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) == 0:
        raise UserError(
            f"{name}: features must be (N, D) and labels (N,) with N >= 1; "
            f"they are {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(1).sum())
        raise RunError(
            f"{name}: {bad} of {len(x)} features are not finite; the model diverged, "
            "train it again with a smaller learning rate"
        )
    if (y < 0).any():
        raise UserError(
            f"{name}: {int((y < 0).sum())} of {len(y)} samples have no label; leave them out"
        )
    return x, y.astype(np.int64)


def _neighbours(
    train: np.ndarray, train_y: np.ndarray, x: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, similarities), each (N, k), of the k nearest unit rows, most similar first."""
    labels, similarities = [], []
    rows = max(1, _KNN_BLOCK // len(train))
    for start in range(0, len(x), rows):
        sim = x[start : start + rows] @ train.T
        top = np.argpartition(-sim, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(sim, top, 1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, 1)
        labels.append(train_y[top])
        similarities.append(np.take_along_axis(sim, top, 1))
    return np.concatenate(labels), np.concatenate(similarities)


def _votes(near_y: np.ndarray, near_sim: np.ndarray, num_classes: int, k: int) -> np.ndarray:
    """(N, C) counts among the first k, plus a part below one that orders equal counts."""
    votes = np.zeros((len(near_y), num_classes))
    rows = np.arange(len(near_y))
    for i in range(k):
        votes[rows, near_y[:, i]] += 1 + near_sim[:, i] / (2 * k + 1)
    return votes


def _result(
    probe: FittedProbe,
    val_accuracy: float,
    chosen: dict[str, float],
    test_x: np.ndarray | None,
    test_y: np.ndarray | None,
) -> ProbeResult:
    if test_x is None or test_y is None:
        return ProbeResult(val_accuracy, None, chosen, {})
    test_x, test_y = checked("test", test_x, test_y)
    predicted = predict(probe, test_x)
    return ProbeResult(
        val_accuracy, accuracy(test_y, predicted), chosen, per_class(test_y, predicted)
    )
