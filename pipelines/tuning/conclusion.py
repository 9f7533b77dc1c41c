"""What a sweep found: the best point, which knobs mattered, what the confirmation says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.tuning.design import Design
from pipelines.tuning.journal import Record
from uml_core.analysis.exchange_rate import exchange_rate
from uml_core.arms import control_description
from uml_core.errors import RunError, UserError
from uml_core.statistics import mean_interval, paired_gain

CONFIRMED = {
    "uml": "confirm-best",
    "uml_permuted": "confirm-control",
    "unimodal": "confirm-baseline",
    "adaptive": "confirm-adaptive",
}


def best_of(records: Sequence[Record]) -> tuple[Record, Record]:
    """(best configuration with auxiliary data, best baseline), by mean validation accuracy.

    Only trials that were trained to their end count. Raises RunError where there is none.
    """
    finished = [r for r in records if r.status == "finished"]
    mixed = [r for r in finished if r.trial.arm != "unimodal"]
    alone = [r for r in finished if r.trial.arm == "unimodal"]
    if not mixed or not alone:
        which = "with auxiliary data" if not mixed else "without auxiliary data"
        errors = [r.error for r in records if r.error]
        raise RunError(
            f"no configuration {which} reached its end"
            + (f"; the first failure said: {errors[0]}" if errors else "")
        )
    return max(mixed, key=lambda r: r.score), max(alone, key=lambda r: r.score)


def trial_entries(made: Design, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The trials of sweep.json."""
    return [_entry(made, record) for record in records]


def _entry(made: Design, record: Record) -> dict[str, Any]:
    trial, last = record.trial, record.last
    values = last.get("val_accuracies", [])
    return {
        "key": trial.key,
        "kind": "baseline" if trial.arm == "unimodal" else "trial",
        "values": trial.values,
        "settings": trial.settings,
        "status": record.status,
        "error": record.error,
        "spent": last.get("spent", 0),
        "steps": last.get("step", 0),
        "planned": {"target_samples": trial.target_samples, "flops": trial.flops},
        "target_samples": int(
            last.get("batches", {}).get(made.recipe.target, 0)
            * trial.recipe(made.recipe).train.batch_size
        ),
        "flops": made.pricing.spent(trial, last.get("batches", {})),
        "seconds": round(last.get("seconds", 0.0), 1),
        "val_accuracy": values,
        "score": mean_interval(values).to_json() if values else None,
    }


def importance(records: Sequence[Record], repeats: int = 2000) -> dict[str, Any]:
    """How much of the differences between configurations each knob explains on its own.

    Trials are compared at the last validation that all of them reached, so those stopped early
    count too. A knob's share is the variance between its values (a number that takes many values:
    between its thirds) over the variance between trials, less what as many groups explain by
    chance (omega squared); p is the share of random reorderings that explain as much.
    """
    tried = [r for r in records if r.trial.arm != "unimodal" and r.reports]
    if len(tried) < 4:
        return {"validation": None, "knobs": {}}
    common = min(len(r.reports) for r in tried)
    scores = np.array([r.reports[common - 1]["val_accuracy"] for r in tried])
    rng = np.random.default_rng(0)
    knobs = {}
    for name in tried[0].trial.values:
        groups = _groups([r.trial.values[name] for r in tried])
        if len(set(groups)) < 2:
            continue
        share = _omega(scores, groups)
        chance = [_omega(rng.permutation(scores), groups) for _ in range(repeats)]
        p = (1 + sum(c >= share for c in chance)) / (1 + repeats)
        knobs[name] = {"share": max(0.0, share), "p": p}
    ordered = dict(sorted(knobs.items(), key=lambda item: -item[1]["share"]))
    return {"validation": common, "knobs": ordered}


def _groups(values: Sequence[Any]) -> np.ndarray:
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    names, places = np.unique([str(v) for v in values], return_inverse=True)
    if numeric and len(names) > max(6, len(values) // 2):
        ranks = np.argsort(np.argsort(np.asarray(values, dtype=float), kind="stable"))
        return ranks * 3 // len(values)
    return places


def _omega(scores: np.ndarray, groups: np.ndarray) -> float:
    """Omega squared of a one-way layout; 0 where it is not defined."""
    levels = np.unique(groups)
    total = float(((scores - scores.mean()) ** 2).sum())
    inner = sum(float(((s := scores[groups == g]) - s.mean()) @ (s - s.mean())) for g in levels)
    free = len(scores) - len(levels)
    if total == 0 or free < 1:
        return 0.0
    noise = inner / free
    return (total - inner - (len(levels) - 1) * noise) / (total + noise)


def equals_of(records: Sequence[Record], best: Record) -> list[str]:
    """Keys of finished configurations whose paired difference to the best contains zero."""
    out = []
    for record in records:
        if record is best or record.status != "finished" or record.trial.arm == "unimodal":
            continue
        gain = paired_gain(best.last["val_accuracies"], record.last["val_accuracies"])
        if not gain.above_zero:
            out.append(record.trial.key)
    return out


def exchange(made: Design, records: Sequence[Record]) -> dict[str, Any] | None:
    """The exchange rate where the space spans target and auxiliary shots, else None."""
    knobs = {k.name for k in made.space.knobs(made.context)}
    names = (f"{made.recipe.target} samples per class", "auxiliary samples per class")
    if not set(names) <= knobs:
        return None
    rows = [
        (r.trial.values[names[0]], r.trial.values[names[1]], seed, value)
        for r in records
        if r.status == "finished" and r.trial.arm != "unimodal"
        for seed, value in zip(r.trial.seeds, r.last["val_accuracies"], strict=True)
    ]
    other = " and ".join(made.recipe.active[1:])
    try:
        target, auxiliary, seeds, values = zip(*rows, strict=True)
        found = exchange_rate(target, auxiliary, seeds, values, made.recipe.target, other)
    except (UserError, ValueError) as error:
        return {"sentence": f"No exchange rate: {error}", "rate": None}
    rate = found.rate
    return {
        "sentence": found.sentence,
        "rate": {"value": rate.value, "low": rate.low, "high": rate.high},
        "r_squared": found.r_squared,
        "measured_on": "validation",
    }


def confirmed(made: Design, records: Mapping[str, Record]) -> dict[str, Any] | None:
    """The confirmation as an entry of compare.json, with the adaptive arm beside; None without.

    Its seeds are none of the sweep's; differences are paired over them; the test set was read
    once per arm.
    """
    found = {arm: records[key] for arm, key in CONFIRMED.items() if key in records}
    good = {a: r for a, r in found.items() if "test_accuracies" in r.last}
    if not {"uml", "uml_permuted", "unimodal"} <= set(good):
        return None
    arms = {
        arm: {
            "test_accuracy": r.last["test_accuracies"],
            "val_accuracy": r.last["val_accuracies"],
            "best_step": r.last["best_steps"],
            "chosen": r.trial.values,
            "grid_size": 1,
            "flops": made.pricing.spent(r.trial, r.last["batches"]),
            "target_samples": r.trial.target_samples,
        }
        for arm, r in good.items()
    }
    accuracy = {arm: facts["test_accuracy"] for arm, facts in arms.items()}
    learned = arms.pop("adaptive", None)
    best = good["uml"].trial
    entry = {
        "target": made.recipe.target,
        "auxiliary": best.recipe(made.recipe).active[1:],
        "shots": best.recipe(made.recipe).shots,
        "seeds": best.seeds,
        "arms": {name: arms[name] for name in ("unimodal", "uml", "uml_permuted")},
        "baseline": "unimodal",
        "control": control_description(made.recipe),
        "gain": paired_gain(accuracy["uml"], accuracy["unimodal"]).to_json(),
        "control_gain": paired_gain(accuracy["uml_permuted"], accuracy["unimodal"]).to_json(),
        "gain_over_control": paired_gain(accuracy["uml"], accuracy["uml_permuted"]).to_json(),
    }
    if learned is not None:
        entry["adaptive"] = {
            **learned,
            "gain": paired_gain(accuracy["adaptive"], accuracy["unimodal"]).to_json(),
            "gain_over_best": paired_gain(accuracy["adaptive"], accuracy["uml"]).to_json(),
            "mix": good["adaptive"].last.get("mix", []),
        }
    return entry
