"""How often does the decision say yes to noise, and how often to a planted gain?

Every repetition splits real features anew (the 1 797 scanned digits that scikit-learn ships, 64
pixels each), draws labelled samples for all seeds, makes an auxiliary, and runs the decision of
compare/heads.py from end to end. Of a null the auxiliary holds nothing; two nulls force the arms
to differ, since an arm that switches itself off could not be claimed in any case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.stats import beta

from uml_core.compare.claim import Evidence, decide, evidence
from uml_core.compare.heads import decide_heads, shifts
from uml_core.controls import derangement
from uml_core.heads.aux_shift import Shift
from uml_core.heads.linear import logistic
from uml_core.heads.problem import Labelled, Problem, Vectors, class_means, unit

SEEDS = tuple(range(10))
SHOTS = (1, 2, 4)
PARTS = {"auxiliary": 500, "val": 200, "pool": 500, "test": 597}
FORCED = 0.5  # kappa of the null that cannot switch itself off
PROJECTED = 16  # dimensions of a random projection


@dataclass(frozen=True)
class Rate:
    """Claims among repetitions, with the exact (Clopper-Pearson) 95 % interval."""

    claims: int
    repetitions: int

    @property
    def share(self) -> float:
        """Observed, between 0 and 1."""
        return self.claims / self.repetitions

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high), between 0 and 1."""
        k, n = self.claims, self.repetitions
        low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
        high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
        return low, high


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y.astype(np.int64)


def problem_of(rng: np.random.Generator, noise: float | None) -> Problem:
    """A fresh split; the auxiliary is other digits as they are, plus noise in units of their own
    spread (None: nothing but noise)."""
    x, y = _digits()
    ends = np.cumsum(list(PARTS.values()))[:-1]
    told, val, pool, test = (
        Labelled(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
        for rows in np.split(rng.permutation(len(y)), ends)
    )
    about = told.x - told.x.mean(0)
    means = torch.stack([about[told.y == c].mean(0) for c in range(10)])
    fog = torch.from_numpy(rng.normal(size=means.shape).astype(np.float32)) * means.std()
    seen = fog if noise is None else means + noise * fog
    return Problem(
        target="x",
        pool=pool,
        test=test,
        classes=tuple(str(c) for c in range(10)),
        val=val,
        auxiliary=Labelled(seen, torch.arange(10)),
    )


# --------------------------------------------------------------------------------- one repetition


def permuted(rng: np.random.Generator, shots: int) -> Evidence:
    """Null: a telling auxiliary whose labels are deranged."""
    problem = problem_of(rng, 0.0)
    assert problem.auxiliary is not None
    table = torch.from_numpy(derangement(10, int(rng.integers(2**31))))
    return _decided(problem, Labelled(problem.auxiliary.x, table[problem.auxiliary.y]), shots)


def random_vectors(rng: np.random.Generator, shots: int) -> Evidence:
    """Null: an auxiliary of noise."""
    problem = problem_of(rng, None)
    assert problem.auxiliary is not None
    return _decided(problem, problem.auxiliary, shots)


def forced(rng: np.random.Generator, shots: int) -> Evidence:
    """Null: every arm moves its samples along rows of noise of its own, by kappa = 0.5."""
    draw = problem_of(rng, None).draw(shots, SEEDS)
    v = draw.vectors
    hits = {}
    for arm in ("method", "baseline", "permuted", "zero"):
        rows = torch.from_numpy(rng.normal(size=v.prototypes.shape).astype(np.float32))
        rows *= v.prototypes.norm(dim=(1, 2), keepdim=True) / rows.norm(dim=(1, 2), keepdim=True)
        found = logistic(Shift(rows, torch.full((len(SEEDS),), FORCED))(v))
        test = draw.problem.test
        hits[arm] = (found.predict(test.x) == test.y).numpy()
    return evidence("method", ["baseline", "permuted", "zero"], hits)


def projections(rng: np.random.Generator, shots: int) -> Evidence:
    """Null: every arm sees the target through random projections of its own, one per seed."""
    problem = problem_of(rng, None)
    draw = problem.draw(shots, SEEDS)
    at, test = problem.samples, problem.test
    hits = {}
    for arm in ("method", "baseline", "permuted", "zero"):
        through = torch.from_numpy(rng.normal(size=(len(SEEDS), 64, PROJECTED)).astype(np.float32))
        x, val = at.x[draw.train] @ through, at.x[draw.val] @ through
        y = at.y[draw.train]
        centre = class_means(x, y, 10).mean(1)
        z, val_z = unit(x - centre[:, None]), unit(val - centre[:, None])
        rule = logistic(Vectors(centre, z, y, val_z, at.y[draw.val], 10)).rule
        seen = unit(test.x @ through - centre[:, None])
        logits = seen @ rule.weight.mT + rule.bias[:, None]
        hits[arm] = (logits.argmax(-1) == test.y).numpy()
    return evidence("method", ["baseline", "permuted", "zero"], hits)


def planted(noise: float) -> Callable[[np.random.Generator, int], Evidence]:
    """No null: the auxiliary is telling, under so much noise."""

    def repetition(rng: np.random.Generator, shots: int) -> Evidence:
        problem = problem_of(rng, noise)
        assert problem.auxiliary is not None
        return _decided(problem, problem.auxiliary, shots)

    return repetition


NULLS = {
    "permuted": permuted,
    "random_vectors": random_vectors,
    "forced": forced,
    "projections": projections,
}
PLANTED = {"noise 1": planted(1.0), "noise 2": planted(2.0), "noise 4": planted(4.0)}


def rate(
    kind: Callable[[np.random.Generator, int], Evidence],
    repetitions: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Rate:
    """Claims of one kind; the numbers of shots take turns, each repetition is a call of its own."""
    claims = 0
    for number in range(repetitions):
        rng = np.random.default_rng([seed, number])
        found = kind(rng, SHOTS[number % len(SHOTS)])
        claims += decide([found])[0][1]
        if progress is not None:
            progress(number + 1)
    return Rate(claims, repetitions)


def _decided(problem: Problem, auxiliary: Labelled, shots: int) -> Evidence:
    made = dataclasses.replace(problem, auxiliary=auxiliary)
    return decide_heads(made, shots, SEEDS, shifts(["shared"])).evidence
