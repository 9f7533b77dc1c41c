"""Rounds that a worker trains, whatever group did the ones before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.running.cohort import Member


@pytest.mark.parametrize(
    ("first", "in_memory", "trained", "checkpoints"),
    [
        (0, True, [0, 1, 2, 3, 4, 5], [2, 5]),
        (2, True, [2, 3, 4, 5], [2, 5]),  # a group of several workers stopped after two rounds
        (3, True, [3, 4, 5], [5]),
        (4, True, [4, 5], [5]),
        (4, False, [4, 5], [4, 5]),
        (6, True, [], []),
    ],
)
def test_every_round_that_is_left_is_trained_once(first, in_memory, trained, checkpoints):
    """Six rounds of two fits: two numbers of shots with three seeds each."""
    rounds = [SimpleNamespace(shots=k, seed=s) for k in (1, 2) for s in (0, 1, 2)]
    member = Member.__new__(Member)
    found, ends = [], []
    member.cohort = SimpleNamespace(rounds=rounds, units=lambda n: [f"{n}a", f"{n}b"])
    member.recipe = SimpleNamespace(schedule=lambda: SimpleNamespace(total=10))
    member.in_memory, member.split, member.rank, member.done_steps = in_memory, True, 1, 0
    member.feed = None
    member._take_over = lambda: first
    member._open_feed = lambda at: None
    member._train = lambda fits: found.extend(n for n, _ in fits)
    member._report = ends.append
    member._finish = list
    member.run()
    assert found == [n for n in trained for _ in "ab"] and ends == checkpoints
    assert member.done_steps == 6 * 2 * 10
