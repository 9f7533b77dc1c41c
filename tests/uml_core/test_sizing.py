"""The batch size grows while that is worth it, shrinks where memory ends, and loses no sample."""

from __future__ import annotations

import pytest
import torch

from uml_core import sizing
from uml_core.errors import RunError
from uml_core.sizing import BatchSize


def clock(monkeypatch, seconds_of):
    """time.perf_counter that advances as a batch would take; returns the work function."""
    now = [0.0]
    monkeypatch.setattr(sizing.time, "perf_counter", lambda: now[0])
    taken: list[int] = []

    def work(items):
        now[0] += seconds_of(len(items))
        taken.append(len(items))
        return [item * 10 for item in items]

    return work, taken


def results(size, items, work, **options):
    out = [None] * len(items)
    for places, done in size.batches(items, work, **options):
        for place, one in zip(places, done, strict=True):
            out[place] = one
    return out


def test_it_grows_until_larger_batches_are_no_faster(monkeypatch):
    # a fixed cost per batch up to 32 samples; above, twice the time per sample
    work, taken = clock(monkeypatch, lambda n: 1 + 0.01 * n if n <= 32 else 2 * n)
    size = BatchSize()
    items = list(range(1000))
    assert results(size, items, work) == [10 * i for i in items]
    assert taken[:8] == [8, 8, 16, 16, 32, 32, 64, 64] and set(taken[8:-1]) == {32}
    assert size.size == 32 and size.settled


def test_a_given_size_stays_and_the_largest_is_a_limit(monkeypatch):
    work, taken = clock(monkeypatch, lambda n: 1.0)
    results(BatchSize(5), list(range(20)), work)
    assert taken == [5, 5, 5, 5]
    work, taken = clock(monkeypatch, lambda n: 1.0)
    results(BatchSize(most=16), list(range(200)), work)
    assert max(taken) == 16


def test_a_batch_that_does_not_fit_is_halved_and_run_again():
    def work(items):
        if len(items) > 3:
            raise torch.OutOfMemoryError("full")
        return items

    size = BatchSize()
    assert results(size, list(range(30)), work) == list(range(30))
    assert size.size == 2 and size.settled

    def never(items):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(RunError, match="one sample"):
        results(BatchSize(2), [1, 2], never)


def test_batch_mates_are_alike_and_of_like_length():
    seen = []

    def work(items):
        seen.append(items)
        return items

    items = ["aa", "b", "cccc", "dd", "e", "ffff"]
    assert results(BatchSize(2), items, work, length=len) == items
    assert seen == [["cccc", "ffff"], ["aa", "dd"], ["b", "e"]]
    seen.clear()
    results(BatchSize(8), items, work, alike=len)
    assert sorted(len(one) for one in seen) == [2, 2, 2]
    assert all(len({len(item) for item in batch}) == 1 for batch in seen)
