"""The arms of a comparison under the same measures: does the other data change the geometry?

The paper shows margins, silhouette and Davies-Bouldin of unimodal and multimodal models side by
side (F.3, Figs 44 to 46). Here every arm is measured on the same test samples for every seed, and
differences are paired over seeds; the permuted control tells what other data does whatever it
means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, mean_difference
from uml_core.analysis.margins import functional_margins
from uml_core.analysis.rank import effective_rank
from uml_core.analysis.separability import separability
from uml_core.errors import UserError
from uml_core.readout import Readout
from uml_core.statistics import Gain, mean_interval, paired_gain

MEASURES = ("margin", "silhouette", "davies_bouldin", "rank")
SMALLER_IS_BETTER = frozenset({"davies_bouldin"})


@dataclass(frozen=True)
class Geometry:
    """One model on the test samples.

    margin          mean functional margin in the readout's scale
    silhouette, davies_bouldin, rank   as in `separability` and `effective_rank`
    margins, silhouettes               per sample, for paired intervals of a single seed
    """

    margin: float
    silhouette: float
    davies_bouldin: float
    rank: float
    margins: np.ndarray
    silhouettes: np.ndarray


@dataclass(frozen=True)
class ArmGeometry:
    """All arms and seeds of a comparison.

    values       measure -> arm -> one value per seed
    means        measure -> arm -> mean with t interval over seeds
    differences  measure -> arm -> reference minus arm: paired over seeds; with one seed margin
                 and silhouette are paired over samples, the others have no interval
    reference    the arm that the others are subtracted from
    """

    reference: str
    values: dict[str, dict[str, list[float]]]
    means: dict[str, dict[str, Gain]]
    differences: dict[str, dict[str, Gain]]
    seeds: list[int]
    samples: int


def geometry(readout: Readout, x: np.ndarray, labels: np.ndarray) -> Geometry:
    """Measures features x (N, D) with labels (N,), all in the readout's classes.

    Raises UserError where a measure is not defined: fewer than two classes, constant features.
    """
    rows = np.searchsorted(readout.classes, labels)
    margins = functional_margins(readout.lift(x), rows, readout.head, repeats=1)
    # Intervals come from seeds: two draws are the fewest that the functions take.
    apart = separability(x, labels, repeats=2)
    return Geometry(
        margin=float(margins.margins.mean()),
        silhouette=apart.silhouette.value,
        davies_bouldin=apart.davies_bouldin.value,
        rank=effective_rank(x, repeats=2).rank.value,
        margins=margins.margins,
        silhouettes=apart.silhouettes,
    )


def compare_geometry(
    found: Mapping[str, Mapping[int, Geometry]], reference: str = "uml"
) -> ArmGeometry:
    """Arms side by side: arm -> seed -> geometry, every arm with the same seeds and samples."""
    seeds = list(found[reference])
    if any(list(by) != seeds for by in found.values()):
        raise UserError("every arm needs the same seeds in the same order")
    values = {
        measure: {arm: [getattr(by[s], measure) for s in seeds] for arm, by in found.items()}
        for measure in MEASURES
    }
    differences: dict[str, dict[str, Gain]] = {}
    for measure, arms in values.items():
        differences[measure] = {
            arm: paired_gain(arms[reference], arms[arm]) for arm in arms if arm != reference
        }
    if len(seeds) == 1:
        for measure, per_sample in (("margin", "margins"), ("silhouette", "silhouettes")):
            for arm in differences[measure]:
                pair = [getattr(found[a][seeds[0]], per_sample) for a in (reference, arm)]
                differences[measure][arm] = _gain(mean_difference(*pair))
    return ArmGeometry(
        reference=reference,
        values=values,
        means={m: {a: mean_interval(v) for a, v in arms.items()} for m, arms in values.items()},
        differences=differences,
        seeds=seeds,
        samples=len(next(iter(found[reference].values())).margins),
    )


def _gain(found: Estimate) -> Gain:
    return Gain(found.value, (found.low, found.high))
