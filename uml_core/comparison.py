"""The fair comparison's bookkeeping: what was tried, what is chosen, what is concluded.

Hyper-parameters are chosen per arm by mean validation accuracy over seeds, from grids of equal
size; only the chosen settings ever meet the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uml_core.arms import UNIMODAL
from uml_core.specs import ARMS, Recipe, grid_points
from uml_core.statistics import paired_gain


@dataclass(frozen=True)
class Unit:
    """One fit of a comparison: an arm with grid point number `point`, one seed.

    fewer  auxiliary samples per class where an exchange rate is measured with fewer of them than
           the comparison's arms have; None for those arms
    """

    arm: str
    point: int
    seed: int
    shots: int | None
    fewer: int | None = None

    def settings(self, recipe: Recipe) -> dict[str, float]:
        """Its grid point: hyper-parameter -> value, as `arms.build_fit` takes it."""
        return grid_points(recipe.compare, self.arm not in UNIMODAL)[self.point]


@dataclass
class Outcome:
    """What a finished fit leaves for the choice: its best validation and its curves."""

    unit: Unit
    val_accuracy: float
    best_step: int
    history: dict[str, Any]
    diverged_at: int | None = None
    skipped: int = 0


def units_of(recipe: Recipe, arms: Sequence[str], seed: int, shots: int | None) -> list[Unit]:
    """Every fit of one seed and one number of shots."""
    less = recipe.exchange[1][:-1] if recipe.exchange else []
    return [
        Unit(arm, point, seed, shots, fewer)
        for arm, fewer in [*((arm, None) for arm in arms), *(("uml", k) for k in less)]
        for point in range(len(grid_points(recipe.compare, arm not in UNIMODAL)))
    ]


def share(units: Sequence[Unit], batches: Mapping[str, float], workers: int) -> list[list[Unit]]:
    """Splits fits over workers so that their work is even: longest first, to the least loaded.

    batches  arm -> batches per step, the cost of its fits
    """
    shares: list[list[Unit]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for unit in sorted(units, key=lambda u: -batches[u.arm]):
        least = load.index(min(load))
        shares[least].append(unit)
        load[least] += batches[unit.arm]
    return shares


def choose(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Arm -> the grid point of highest mean validation accuracy over seeds; ties: the first.

    A point that diverged on some seed is out, unless every point of its arm did.
    """
    table: dict[str, dict[int, list[Outcome]]] = {}
    for outcome in outcomes:
        table.setdefault(outcome.unit.arm, {}).setdefault(outcome.unit.point, []).append(outcome)
    chosen = {}
    for arm, points in table.items():

        def rank(point: int, points: Mapping[int, list[Outcome]] = points) -> tuple[bool, float]:
            tried = points[point]
            sound = all(o.diverged_at is None for o in tried)
            return sound, float(np.mean([o.val_accuracy for o in tried]))

        chosen[arm] = max(sorted(points), key=rank)
    return chosen


def conclude(
    recipe: Recipe,
    shots: int | None,
    outcomes: Sequence[Outcome],
    chosen: Mapping[str, int],
    test: Mapping[tuple[str, int], float],
    control: str,
) -> dict[str, Any]:
    """The result object of compare.json for one number of shots (without `wall_seconds`).

    test  (arm, seed) -> test accuracy in percent of the chosen setting
    """
    by_unit = {(o.unit.arm, o.unit.point, o.unit.seed): o for o in outcomes}
    arms: dict[str, dict[str, Any]] = {}
    for arm in sorted(chosen, key=ARMS.index):
        point = chosen[arm]
        kept = [by_unit[arm, point, seed] for seed in recipe.seeds]
        points = grid_points(recipe.compare, arm not in UNIMODAL)
        arms[arm] = {
            "test_accuracy": [test[arm, seed] for seed in recipe.seeds],
            "val_accuracy": [o.val_accuracy for o in kept],
            "best_step": [o.best_step for o in kept],
            "chosen": points[point],
            "grid_size": len(points),
            "skipped_updates": [o.skipped for o in kept],
            "diverged": [
                {"setting": points[o.unit.point], "seed": o.unit.seed, "step": o.diverged_at}
                for o in outcomes
                if o.unit.arm == arm and o.diverged_at is not None
            ],
        }
    baseline = max(
        (arm for arm in arms if arm in UNIMODAL),
        key=lambda arm: float(np.mean(arms[arm]["val_accuracy"])),
    )
    accuracy = {arm: result["test_accuracy"] for arm, result in arms.items()}
    gain = paired_gain(accuracy["uml"], accuracy[baseline])
    ssl = recipe.setting == "self_supervised"  # only its probe may see a share of the labels
    init = {}
    if "uml_init" in accuracy:
        init["init_gain"] = paired_gain(accuracy["uml_init"], accuracy[baseline]).to_json()
    return {
        "target": recipe.target,
        "auxiliary": recipe.active[1:],
        "shots": shots,
        "label_fraction": recipe.probe.label_fraction if ssl else None,
        "seeds": list(recipe.seeds),
        "arms": arms,
        "baseline": baseline,
        "control": control,
        "gain": gain.to_json(),
        **init,
        "control_gain": paired_gain(accuracy["uml_permuted"], accuracy[baseline]).to_json(),
        "gain_over_control": paired_gain(accuracy["uml"], accuracy["uml_permuted"]).to_json(),
    }


def curves(
    recipe: Recipe, outcomes: Sequence[Outcome], chosen: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Arm -> validation steps, accuracies and losses per seed of its chosen setting.

    Arms with auxiliary data also have their gradient reports per seed (analysis/gradients.py).
    """
    by_unit = {(o.unit.arm, o.unit.point, o.unit.seed): o for o in outcomes}
    out: dict[str, dict[str, Any]] = {}
    for arm, point in chosen.items():
        histories = [by_unit[arm, point, seed].history for seed in recipe.seeds]
        longest = max(histories, key=lambda h: len(h["steps"]))
        names = sorted({name for h in histories for losses in h["losses"] for name in losses})
        out[arm] = {
            "steps": longest["steps"],
            "val_accuracy": [h["val_accuracy"] for h in histories],
            "loss": {n: [[at.get(n) for at in h["losses"]] for h in histories] for n in names},
        }
        if any(h["gradients"] for h in histories):
            out[arm]["gradients"] = [h["gradients"] for h in histories]
    return out
