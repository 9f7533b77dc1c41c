"""Which modality's batches a step takes: a pure function of (ratios, step).

Every rank computes the same answer without communication, so a checkpoint needs no more than the
step. Ratios are batches per target batch and are met with low discrepancy: at any prefix of the
run each modality is at most one batch away from its exact share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Ratio = float | tuple[tuple[int, float], ...]  # constant, or ((from step, value), ...)


def cumulative(ratio: Ratio, t: int) -> float:
    """Batches of a modality that `t` target batches call for: the integral of its ratio."""
    if not isinstance(ratio, tuple):
        return ratio * t
    total = 0.0
    for (start, value), end in zip(ratio, [s for s, _ in ratio[1:]] + [t], strict=True):
        total += value * max(0, min(end, t) - start)
    return total


def steps_of_epochs(epochs: float, samples: int, batch_size: int) -> int:
    """Batches after which every one of `samples` has been taken `epochs` times.

    Batches run on from one pass into the next, so that 3 passes over 100 samples in batches of 8
    are 38 batches (300 / 8 rounded up), and not three times 13.
    """
    return math.ceil(round(epochs * samples / batch_size, 9))


@dataclass(frozen=True)
class Warmup:
    """`steps` steps on `modality` alone before the joint phase (paper B.4.1, both directions).

    Warm-up on the target takes the first target batches, without company. Warm-up on an auxiliary
    modality takes additional steps before the first target batch, so that every arm of a
    comparison sees equally many target batches.
    """

    modality: str
    steps: int


@dataclass(frozen=True)
class Schedule:
    """Batches of every modality at every step.

    target   name of the target modality (its ratio is one by definition)
    ratios   auxiliary modality -> batches per target batch; 0 is legal and costs nothing
    steps    target batches in the run
    """

    target: str
    ratios: Mapping[str, Ratio]
    steps: int
    warmup: Warmup | None = None

    @property
    def lead(self) -> int:
        """Steps before the first target batch (warm-up on an auxiliary modality)."""
        return self.warmup.steps if self.warmup and self.warmup.modality != self.target else 0

    @property
    def total(self) -> int:
        """All steps: the lead and one per target batch."""
        return self.lead + self.steps

    def counts(self, step: int) -> dict[str, int]:
        """Batches of each modality that step `step` takes, in a fixed order, zeros left out."""
        if step < self.lead:
            assert self.warmup is not None
            return {self.warmup.modality: 1}
        t = step - self.lead
        counts = {self.target: 1}
        alone = self.warmup.steps if self.warmup and self.lead == 0 else 0
        if t >= alone:
            for name, ratio in self.ratios.items():
                n = self._due(ratio, t + 1, alone) - self._due(ratio, t, alone)
                if n:
                    counts[name] = n
        return counts

    def consumed(self, step: int) -> dict[str, int]:
        """Batches of each modality taken before step `step`."""
        t = max(0, step - self.lead)
        alone = self.warmup.steps if self.warmup and self.lead == 0 else 0
        taken = {self.target: t}
        for name, ratio in self.ratios.items():
            taken[name] = self._due(ratio, t, alone) if t > alone else 0
        if self.lead:
            assert self.warmup is not None
            name = self.warmup.modality
            taken[name] = taken.get(name, 0) + min(step, self.lead)
        return taken

    def first_meeting(self, step: int, every: int) -> bool:
        """Whether `step` is the first of its `every` steps that takes some auxiliary with a target.

        Steps are counted off in windows [0, every), [every, 2 every) ...; a modality whose ratio
        leaves whole windows out has no first step there.
        """
        counts = self.counts(step)
        start = max(self.lead, step - step % every)
        before, now = self.consumed(start), self.consumed(step)
        return self.target in counts and any(
            counts.get(name, 0) and now[name] == before[name] for name in self.ratios
        )

    @staticmethod
    def _due(ratio: Ratio, t: int, alone: int) -> int:
        # Half a batch of phase centres the rounding: the error stays within half a batch.
        # The tiny term keeps 3 * (1/3) from falling short of 1 in floating point.
        exact = cumulative(ratio, t) - cumulative(ratio, alone)
        return math.floor(exact + 0.5 + 1e-9)

    def constant(self) -> bool:
        """Whether every step takes the same modalities (then DDP need not look for idle ones)."""
        if self.warmup:
            return False
        return all(not isinstance(r, tuple) and r == int(r) for r in self.ratios.values())
