"""What the tests may cost, as a gate: a run whose tests of one kind take longer fails.

A test belongs to one kind: `cluster`, `slow`, `ray`, or `unit` where it has none of these markers.
A kind's budget is the sum of what its tests took, set-up and tear-down included, on two quiet
cores (unit tests run in two processes, so their sum is twice what one waits). A machine that is
slower, or that does other work, says by how much: UML_TEST_BUDGET_FACTOR=2.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

FACTOR = float(os.environ.get("UML_TEST_BUDGET_FACTOR", "1"))
SECONDS = {"unit": 460.0, "ray": 240.0, "slow": 1200.0, "cluster": 1800.0}
KINDS = ("cluster", "slow", "ray")  # the first marker that a test has decides


def kind_of(item: pytest.Item) -> str:
    """The kind of cost that a test is counted under."""
    return next((kind for kind in KINDS if item.get_closest_marker(kind)), "unit")


class Budget:
    """A pytest plugin: sums durations by kind, tells them, and fails a run that spent too much."""

    def __init__(self, seconds: dict[str, float] = SECONDS, factor: float = FACTOR) -> None:
        self._seconds, self._factor = seconds, factor
        self.spent: Counter[str] = Counter()

    def allowed(self, kind: str) -> float:
        """Seconds that the tests of a kind may take on this machine."""
        return self._seconds[kind] * self._factor

    @property
    def exceeded(self) -> list[str]:
        """The kinds that took longer than they may."""
        return [kind for kind, seconds in self.spent.items() if seconds > self.allowed(kind)]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Reports carry properties, also from the processes of pytest-xdist; markers they do not.
        for item in items:
            item.user_properties.append(("kind", kind_of(item)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.spent[dict(report.user_properties)["kind"]] += report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # a process of pytest-xdist saw its share only
        if self.exceeded and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("budgets")
        for kind, seconds in sorted(self.spent.items()):
            terminalreporter.line(
                f"{kind:<8}{seconds:6.0f} s of {self.allowed(kind):.0f} s",
                bold=True,
                red=kind in self.exceeded,
            )
        if self.exceeded:
            terminalreporter.line(
                f"FAILED: {' and '.join(self.exceeded)} tests take too long; the slowest stand "
                "above. Make them cheaper, or, on a slow or busy machine, run them again with "
                "UML_TEST_BUDGET_FACTOR=2",
                red=True,
            )
