"""One worked example for the figure: six shared directions that X shows ever more weakly.

X shows direction 1 at full strength and direction 6 not at all; Y shows all six at half strength.
Private parameters are unknown on both sides, so all informations are Schur complements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from uml_core.theory.exchange import Budget, best_budget, exchange_rate
from uml_core.theory.fisher import (
    Array,
    Samples,
    dirvar,
    fisher_information,
    schur,
)

X_STRENGTH = (1.0, 0.6, 0.35, 0.2, 0.1, 0.0)
Y_STRENGTH = 0.5
X_NOISE = 0.5
Y_NOISE = 0.5  # as clean as X
NOISY = 8  # how many times noisier Y is in the last budget
SAMPLES = 100


@dataclass(frozen=True)
class Example:
    """``x_only``, ``joint`` (6,): variance along each direction with 100 X, and 100 X + 100 Y.

    ``rates`` (6,): Y samples worth one X sample. ``budgets``: best splits of 100 samples to rebuild
    X that shows all six directions fully (``full_strength``), X with its own strengths
    (``like_training``), and the latter where Y is `NOISY` times noisier (``noisy_y``).
    """

    strength: Array
    x_only: Array
    joint: Array
    rates: Array
    budgets: dict[str, Budget]


def worked_example(seed: int = 0) -> Example:
    """Variances, exchange rates and budgets of the example."""
    rng = np.random.default_rng(seed)
    strength = np.asarray(X_STRENGTH)
    width, private, numbers = len(strength), 2, 8
    shape = (SAMPLES, numbers)
    x = Samples(
        rng.normal(size=(*shape, width)) * strength, rng.normal(size=(*shape, private)), X_NOISE
    )
    y = Samples(
        rng.normal(size=(*shape, width)) * Y_STRENGTH, rng.normal(size=(*shape, private)), Y_NOISE
    )
    info_x, info_y = fisher_information(x), fisher_information(y)
    s_x, s_y = schur(info_x), schur(info_y)
    axes = np.eye(width)
    full = x.shared / np.where(strength > 0, strength, 1.0)
    full[..., strength == 0] = rng.normal(size=(*shape, int((strength == 0).sum())))
    per_x, per_y = info_x.scaled(1 / SAMPLES), info_y.scaled(1 / SAMPLES)
    own, all_six = _to_rebuild(x), _to_rebuild(replace(x, shared=full))
    return Example(
        strength=strength,
        x_only=dirvar(s_x, axes),
        joint=dirvar(s_x + s_y, axes),
        rates=exchange_rate(s_x, s_y, axes),
        budgets={
            "full_strength": best_budget(per_x, per_y, all_six, SAMPLES),
            "like_training": best_budget(per_x, per_y, own, SAMPLES),
            "noisy_y": best_budget(per_x, per_y.scaled(NOISY**-2), own, SAMPLES),
        },
    )


def _to_rebuild(x: Samples) -> Array:
    """Average [A_c A_x]'[A_c A_x] over the designs to rebuild (no noise in it)."""
    info = fisher_information(replace(x, noise=1.0)).scaled(1 / SAMPLES)
    return np.block([[info.cc, info.cp], [info.cp.T, info.pp]])
