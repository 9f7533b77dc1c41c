"""The measurement of false claims: it draws afresh, counts right, and could find a fault."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.compare import false_claims
from uml_core.compare.claim import Evidence
from uml_core.compare.false_claims import NULLS, PLANTED, Rate, problem_of, rate


def test_the_exact_interval():
    assert Rate(0, 100).interval == pytest.approx((0, 0.0362), abs=1e-4)
    assert Rate(100, 100).interval == pytest.approx((0.9638, 1), abs=1e-4)
    assert Rate(5, 100).interval == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_every_repetition_has_a_split_of_its_own_and_no_sample_twice():
    one, other = (problem_of(np.random.default_rng(i), 1.0) for i in (0, 1))
    assert not (one.test.x == other.test.x).all()
    rows = np.concatenate([p.x.numpy() for p in (one.pool, one.val, one.test)])
    x, _ = false_claims._digits()
    assert len(np.unique(rows, axis=0)) >= len(rows) - (len(x) - len(np.unique(x, axis=0)))


@pytest.mark.parametrize("kind", NULLS)
def test_nulls_run_the_whole_decision_and_repeat_themselves(kind):
    one, again = (NULLS[kind](np.random.default_rng(3), 1) for _ in range(2))
    assert one.p == again.p and len(one.over) >= 3


@pytest.mark.parametrize("kind", ["forced", "projections"])
def test_the_arms_of_these_nulls_really_differ(kind):
    """An arm that switches itself off could not be claimed in any case."""
    found = NULLS[kind](np.random.default_rng(0), 1)
    assert all(d.gain.mean != 0 and d.gain.half_width > 0 for d in found.over.values())


def test_a_planted_gain_is_found_and_a_wrong_rule_would_be(monkeypatch):
    assert rate(PLANTED["noise 1"], 6).claims >= 3
    monkeypatch.setattr(Evidence, "claimed", lambda self, p: True)  # a rule that always says yes
    assert rate(NULLS["forced"], 3).claims == 3
