"""Suite `claims`: how often the decision over features says yes to noise, and to a planted gain.

Unlike the other suites it counts: 1 000 whole decisions of each null, 200 of each planted gain
(uml_core/compare/false_claims.py), whatever `--repeats` says. About 20 minutes on 2 cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from uml_core.compare import false_claims
from uml_core.compare.false_claims import NULLS, PLANTED, Rate, rate

REPETITIONS, POWER_REPETITIONS = 1000, 200
MUST, MUST_HIGH = 2.5, 4.0  # percent of false claims: observed, and the upper end of its interval


def measure(repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Shares of claims in percent, with exact 95 % intervals; `false_rate` is the worst null's."""
    jobs = [(kind, REPETITIONS) for kind in NULLS] + [(kind, POWER_REPETITIONS) for kind in PLANTED]
    found: dict[str, Rate] = {}
    with ProcessPoolExecutor(
        os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_one_thread
    ) as pool:
        waiting = {kind: pool.submit(partial(_rate, kind, count)) for kind, count in jobs}
        for kind, future in waiting.items():
            found[kind] = future.result()
            say(f"{kind}: {_told(found[kind])}")
    worst = max(NULLS, key=lambda kind: found[kind].share)
    return {
        "false_rate": found[worst].share,
        "false_rate_high": max(found[kind].interval[1] for kind in NULLS),
        "repetitions": REPETITIONS,
        "power": {kind: found[kind].share for kind in PLANTED},
        "repeats": {
            kind: {"claims": r.claims, "of": r.repetitions, "ci95": list(r.interval)}
            for kind, r in found.items()
        },
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal."""
    table = []
    for kind, raw in result["repeats"].items():
        bound = (f"≤ {MUST} %, upper end ≤ {MUST_HIGH:.0f} %", "") if kind in NULLS else ("", "")
        name = f"false claims, {kind}" if kind in NULLS else f"claims, planted gain, {kind}"
        table.append([name, _told(Rate(raw["claims"], raw["of"])), *bound])
    return table


def _told(found: Rate) -> str:
    low, high = found.interval
    return f"{100 * found.share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _rate(kind: str, repetitions: int) -> Rate:
    return rate({**false_claims.NULLS, **false_claims.PLANTED}[kind], repetitions)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
