"""Budgets of the test suite fail a run that spent too much, in one process and in several."""

from __future__ import annotations

from pathlib import Path

import pytest
from budget import KINDS, SECONDS, Budget

pytest_plugins = ["pytester"]

SUPPORT = Path(__file__).parent / "support"
CONFTEST = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from budget import Budget
def pytest_configure(config):
    for kind in ("ray", "slow"):
        config.addinivalue_line("markers", kind)
    config.pluginmanager.register(Budget({{"unit": 30.0, "ray": 0.3, "slow": 0.3}}, FACTOR))
"""
TESTS = """
import time, pytest
def test_quick(): pass
@pytest.fixture
def costly(): time.sleep(0.2)
@pytest.mark.ray
def test_one(costly): time.sleep(0.2)
@pytest.mark.ray
@pytest.mark.slow
def test_two(): pass
"""


@pytest.mark.parametrize(("factor", "processes", "code"), [(1, 0, 1), (100, 0, 0), (1, 1, 1)])
def test_a_kind_that_takes_too_long_fails_the_run(pytester, factor, processes, code):
    pytester.makeconftest(CONFTEST.replace("FACTOR", str(factor)))
    pytester.makepyfile(TESTS)
    done = pytester.runpytest("-p", "no:cacheprovider", "-n", str(processes))
    done.assert_outcomes(passed=3)
    assert done.ret == code
    said = done.stdout.str()
    assert ("FAILED: ray tests take too long" in said) == bool(code)
    assert f"s of {0.3 * factor:.0f} s" in said and "\nslow " in said and "\nunit " in said


def test_every_kind_has_a_budget_and_the_first_marker_decides():
    assert {*KINDS, "unit"} == SECONDS.keys()
    budget = Budget({"unit": 10.0, "ray": 4.0}, factor=2)
    budget.spent.update(unit=21.0, ray=8.0)
    assert budget.exceeded == ["unit"] and budget.allowed("ray") == 8.0
