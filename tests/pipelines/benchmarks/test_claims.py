"""The suite `claims`: the worst null is the figure, and all kinds are told."""

from __future__ import annotations

import pytest

from pipelines.benchmarks import claims

NULLS, PLANTED = {"forced": 1, "random_vectors": 1}, {"noise 1": 1}  # names: the others cost time


def test_a_short_measurement_from_end_to_end(monkeypatch):
    """In processes of its own, as `uml bench claims` runs it."""
    monkeypatch.setattr(claims, "NULLS", NULLS)
    monkeypatch.setattr(claims, "PLANTED", PLANTED)
    monkeypatch.setattr(claims, "REPETITIONS", 3)
    monkeypatch.setattr(claims, "POWER_REPETITIONS", 3)
    said: list[str] = []
    found = claims.measure(say=said.append)
    assert set(found) >= {"false_rate", "repetitions", "power", "repeats"}
    assert set(found["repeats"]) == {*NULLS, *PLANTED} and len(said) == len(found["repeats"])
    shares = [raw["claims"] / raw["of"] for k, raw in found["repeats"].items() if k in NULLS]
    assert found["false_rate"] == max(shares) and set(found["power"]) == set(PLANTED)
    table = claims.rows(found)
    assert len(table) == len(found["repeats"]) and all("% (" in row[1] for row in table)
    assert found["false_rate_high"] == pytest.approx(0.7076, abs=1e-3)  # 0 of 3
