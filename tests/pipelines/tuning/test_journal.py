"""The journal: what a kill leaves, what is kept on disk."""

from __future__ import annotations

import json

import pytest

from pipelines.tuning.journal import NAME, Journal
from uml_core.errors import UserError


def report(step, accuracy):
    return {"step": step, "val_accuracy": accuracy, "spent": 10 * step}


def test_a_torn_line_is_dropped_and_the_next_is_whole(tmp_path, make_trial):
    journal = Journal(tmp_path)
    journal.start(make_trial("a"))
    journal.report("a", report(5, 40.0))
    with (tmp_path / NAME).open("a") as file:
        file.write('{"kind": "report", "key": "a", "met')  # killed while writing
    again = Journal(tmp_path)
    assert again.records["a"].score == 40.0 and not again.records["a"].ended
    again.end("a", "stopped")
    assert Journal(tmp_path).records["a"].status == "stopped"


def test_a_journal_of_another_version_is_refused_by_name(tmp_path):
    event = {"kind": "start", "trial": {"key": "a", "warmup_steps": 3}}
    (tmp_path / NAME).write_text(json.dumps(event) + "\n")
    with pytest.raises(UserError, match="another version of the project"):
        Journal(tmp_path)


def test_a_trial_that_goes_on_keeps_its_reports_and_takes_none_twice(tmp_path, make_trial):
    journal = Journal(tmp_path)
    journal.start(make_trial("a"))
    journal.report("a", report(5, 40.0))
    journal.checkpoint("a", "somewhere")
    again = Journal(tmp_path)
    again.start(make_trial("a"))
    again.report("a", report(5, 40.0))  # restored from the checkpoint before it
    again.report("a", report(10, 50.0))
    assert [r["step"] for r in again.records["a"].reports] == [5, 10]
    assert again.records["a"].checkpoint == "somewhere"


def test_a_failed_trial_is_open_for_another_try(tmp_path, make_trial):
    journal = Journal(tmp_path)
    journal.start(make_trial("a"))
    journal.end("a", "failed", "no disk")
    assert not journal.records["a"].ended
    journal.start(make_trial("a"))
    assert journal.records["a"].status == "running" and journal.records["a"].error is None


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_best_checkpoints_stay(tmp_path, keep, make_trial):
    journal = Journal(tmp_path)
    for key, accuracy, status in (
        ("low", 10.0, "finished"),
        ("high", 30.0, "finished"),
        ("mid", 20.0, "finished"),
        ("early", 99.0, "stopped"),
        ("open", 5.0, None),
    ):
        journal.start(make_trial(key))
        journal.report(key, report(10, accuracy))
        (tmp_path / key).mkdir()
        journal.checkpoint(key, str(tmp_path / key))
        if status:
            journal.end(key, status)
    journal.prune(keep)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"open", *["high", "mid"][:keep]}
