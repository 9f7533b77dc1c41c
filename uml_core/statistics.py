"""Means over seeds with their t intervals, and the rule by which a gain may be claimed.

Arms share their seeds, so differences are taken seed by seed (paired). All values are in the
units that come in: accuracies in percent give gains in points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Gain:
    """A mean and its interval; `ci95` is None where one seed alone gives no interval."""

    mean: float
    ci95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """``{"mean": m, "ci95": [lo, hi] | null}``, as compare.json holds it."""
        return {"mean": self.mean, "ci95": None if self.ci95 is None else list(self.ci95)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Gain:
        """The inverse of `to_json`."""
        ci = data["ci95"]
        return cls(float(data["mean"]), None if ci is None else (float(ci[0]), float(ci[1])))

    @property
    def half_width(self) -> float | None:
        """Half the interval's width: the number behind a plus-minus sign."""
        return None if self.ci95 is None else (self.ci95[1] - self.ci95[0]) / 2

    @property
    def above_zero(self) -> bool:
        """True where the whole interval lies above zero; never without an interval."""
        return self.ci95 is not None and self.ci95[0] > 0


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Gain:
    """Mean of (n,) values with the two-sided t interval of n - 1 degrees of freedom.

    One value has no spread, hence no interval. Raises ValueError for none or non-finite values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected a list of at least one number, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers, got {x.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    mean = float(x.mean())
    if x.size == 1:
        return Gain(mean, None)
    half = float(stdtrit(x.size - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Gain(mean, (mean - half, mean + half))


def paired_gain(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Gain:
    """Mean of a - b over n shared seeds with its paired t interval; `a[i]`, `b[i]` share a seed.

    Raises ValueError where the two do not have the same number of seeds.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need the same seeds: {len(a)} against {len(b)} values")
    return mean_interval(np.subtract(a, b, dtype=np.float64), level)


def gain_shown(gain: Gain, gain_over_control: Gain) -> bool:
    """The rule of this project: a gain is claimed only where both intervals lie above zero.

    Beating the baseline alone is not enough: the control has the same auxiliary inputs with
    their structure destroyed, so what it also reaches is no effect of that structure.
    """
    return gain.above_zero and gain_over_control.above_zero
