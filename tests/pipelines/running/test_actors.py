"""Parts of a job: what the journal calls done has its bad samples written down."""

from __future__ import annotations

import json

import pytest

from pipelines.running import actors
from pipelines.running.actors import parts_of, run_parts
from pipelines.streams.quarantine import Quarantine, recorded
from uml_core.errors import RunError


class Work:
    """Every third sample is bad."""

    weights_bytes = 0

    def open(self, device):
        def do(part):
            rows = range(part.first, part.stop)
            bad = [["u", str(i), "broken"] for i in rows if i % 3 == 2]
            return {"samples": len(rows) - len(bad), "bad": bad}

        return do


def run(folder, budget: float = 100.0):
    bad = Quarantine(folder / "quarantine.jsonl", budget, rows=12)
    return run_parts(Work(), parts_of(12, 3), folder / "journal", title="t", quarantine=bad)


def test_bad_samples_over_the_budget_stay_an_error_after_a_resume(tmp_path):
    for _ in range(2):  # the second is the resume: it may not pass over the part that was too much
        with pytest.raises(RunError, match="at most 1 may be"):
            run(tmp_path, budget=1.0)
    done = [json.loads(line)["number"] for line in (tmp_path / "journal").read_text().splitlines()]
    assert done == [0]
    assert sum(r["samples"] for r in run(tmp_path)) == 8
    assert [line["key"] for line in recorded(tmp_path / "quarantine.jsonl")] == [
        "2",
        "5",
        "8",
        "11",
    ]


def test_a_kill_before_the_journal_loses_no_bad_sample(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(actors, "append_line", killed)
        run(tmp_path)
    assert [line["key"] for line in recorded(tmp_path / "quarantine.jsonl")] == ["2"]
    assert not (tmp_path / "journal").exists()
    run(tmp_path)
    assert len(recorded(tmp_path / "quarantine.jsonl")) == 4
