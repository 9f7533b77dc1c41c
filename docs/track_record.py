"""Collects how the forecast fared in finished comparisons, for uml_core/analysis/track_record.json.

    python docs/track_record.py runs/shapes/20260101-120000 ... > cases.json

Takes the --out folders of `uml compare`. Which comparisons count is settled before they run, and
every one that was run counts, whatever it found.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml

KNOWN = ("caltech", "digits")  # their outcome was known when the rule's threshold was set


def case(out: Path) -> dict[str, Any]:
    """One finished comparison as a case; its command without what holds on one machine only."""
    compare, environment = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("compare", "environment")
    )
    recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))["name"]
    command = re.sub(r" --out \S+", "", environment["command"])
    foretold = compare["forecast"]
    alone = compare["arms"][compare["baseline"]]["test_accuracy"]
    return {
        "recipe": recipe,
        "command": re.sub(r"data_root=\S+", "data_root=...", command),
        "date": date.fromtimestamp((out / "compare.json").stat().st_mtime).isoformat(),
        "commit": environment["git"]["commit"][:12],
        "target": compare["target"],
        "shots": compare["shots"],
        "seeds": compare["seeds"],
        "geometry": {
            name: one["geometry"] and round(one["geometry"]["value"], 3)
            for name, one in foretold["auxiliaries"].items()
        },
        "verdict": foretold["verdict"],
        "alone": round(statistics.mean(alone), 2),
        "gain": rounded(compare["gain"]),
        "gain_over_control": rounded(compare["gain_over_control"]),
        "known": recipe.startswith(KNOWN),
    }


def rounded(gain: dict[str, Any]) -> dict[str, Any]:
    """A gain to a hundredth of a point."""
    return {"mean": round(gain["mean"], 2), "ci95": [round(v, 2) for v in gain["ci95"]]}


if __name__ == "__main__":
    print(json.dumps([case(Path(out)) for out in sys.argv[1:]], indent=1))
