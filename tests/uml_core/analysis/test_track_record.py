"""How the forecast fared: counted from the cases, told with its doubts."""

from __future__ import annotations

import re

import pytest

from uml_core.analysis import track_record
from uml_core.analysis.forecast import LIKELY, OPEN, UNLIKELY
from uml_core.analysis.track_record import Case

YES, NO = {"mean": 3.0, "ci95": [1.0, 5.0]}, {"mean": 0.1, "ci95": [-1.0, 1.2]}


def case(verdict: str, gain: dict, over: dict = YES, known=False, alone=40.0) -> Case:
    return Case.from_json(
        {
            "recipe": "r",
            "command": "uml compare r",
            "date": "2026-01-01",
            "commit": "0123456",
            "target": "image",
            "shots": 8,
            "seeds": [0, 1],
            "geometry": {"text": 0.4},
            "verdict": verdict,
            "alone": alone,
            "gain": gain,
            "gain_over_control": over,
            "known": known,
        }
    )


def test_right_means_likely_with_a_claimed_gain_or_unlikely_without():
    found = [case(LIKELY, YES), case(LIKELY, YES, NO), case(UNLIKELY, NO), case(OPEN, YES)]
    assert [c.gained for c in found] == [True, False, False, True]
    rate = track_record.rate(found)
    assert (rate.right.value, rate.decided, rate.open) == (pytest.approx(2 / 3), 3, 1)
    text = track_record.sentence(found)
    assert text.startswith("The rule was right in 2 of 3 comparisons of this project (95 %")
    assert "left 1 open" in text and text.endswith("Too few cases to trust it.")
    assert track_record.brief(found) == (
        "right in 2 of 3 of this project's comparisons, too few to trust"
    )


def test_data_that_the_rule_was_made_from_is_told_apart():
    found = [case(LIKELY, YES, known=True), case(LIKELY, NO)]
    assert "not counting data it was made from, in 0 of 1" in track_record.sentence(found)
    assert "in 0 of 0" in track_record.sentence(found[:1])


def test_a_target_that_had_nothing_to_gain_is_told():
    found = [case(LIKELY, NO), case(LIKELY, NO, alone=99.0), case(LIKELY, YES, alone=96.0)]
    assert "In 1 of its 2 false hopes the target alone was right in 95 %" in (
        track_record.sentence(found)
    )
    assert "false hopes" not in track_record.sentence([case(LIKELY, NO)])


def test_many_cases_lift_the_reservation_and_none_is_no_record():
    assert "Too few" not in track_record.sentence([case(LIKELY, YES)] * track_record.FEW)
    assert "has decided no comparison" in track_record.sentence([case(OPEN, YES)])
    assert track_record.brief([]) == "never tested"


def test_the_record_of_this_project():
    found = track_record.cases()
    assert {"shapes", "digits", "digits-audio", "caltech", "caltech-aligned"} <= {
        c.recipe for c in found
    }
    assert len({c.command for c in found}) == len(found)
    for c in found:
        assert re.fullmatch(r"2\d{3}-\d\d-\d\d", c.date) and re.fullmatch(r"[0-9a-f]{7,}", c.commit)
        assert c.verdict in (LIKELY, UNLIKELY, OPEN) and len(c.seeds) >= 5
        assert c.command.startswith(f"uml compare {c.recipe}")
        if c.verdict == LIKELY:
            assert max(v for v in c.geometry.values() if v is not None) >= 0.2
