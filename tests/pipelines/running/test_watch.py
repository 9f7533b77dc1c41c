"""What a person is told while a worker waits: what for, which shard, not too often."""

from __future__ import annotations

import time

import pytest
from runs import wait_until

from pipelines.running import board as boards
from pipelines.running.board import Listener, Reporter, failure_of, new_board
from pipelines.running.watch import Watch, sentence


def test_the_sentence_names_the_slow_shards_else_those_due():
    shards = [f"text-{i}.tar" for i in range(5)]
    said = sentence("text", 12.3, shards, {"text-3.tar": 5.0, "text-1.tar": 11.0})
    assert said == (
        "Training has waited 12 s for text. A read takes long: text-1.tar (11 s so far), "
        "text-3.tar (5 s so far)."
    )
    said = sentence("text", 12.3, shards, {})
    assert "It lies in text-0.tar, text-1.tar, text-2.tar and 2 more" in said


@pytest.mark.ray
def test_a_wait_is_told_once_and_its_end_too(ray_cluster):
    board, said = new_board(), []
    reporter = Reporter(board, 0)
    watch = Watch(reporter, limit=1.0)
    with Listener(board, lambda done: None, say=said.append, interval=0.05):
        with watch.waiting("image", ["a.tar"], lambda: ["a.tar"]):
            pass  # a short wait is no news
        board.slow.remote("text-1.tar", 7.0)
        board.slow.remote("image-1.tar", 9.0)  # of another modality
        with watch.waiting("text", ["text-0.tar", "text-1.tar"], lambda: ["text-0.tar"]):
            wait_until(lambda: said)
            time.sleep(1.0)
        wait_until(lambda: len(said) > 1)
        time.sleep(0.5)
    watch.close()
    first, last = said
    assert "s for text. A read takes long: text-1.tar (7 s so far)." in first
    assert last == "text is there again."


@pytest.mark.ray
def test_notes_of_a_topic_come_once_a_minute_and_a_standstill_is_told(ray_cluster, monkeypatch):
    monkeypatch.setattr(boards, "STALL_SECONDS", 1e6)
    board, said, events = new_board(), [], []
    one, two = Reporter(board, 0), Reporter(board, 1)
    with Listener(board, lambda d: None, events.append, say=said.append, interval=0.05) as listener:
        one.began(0, "step")
        one.note("slow", "text")
        two.note("slow too", "text")
        two.note("another thing")
        one.post(step=3, metrics={"loss": 1.0})
        wait_until(lambda: events)
        assert said == ["slow", "another thing"] and events == [
            {"step": 3, "metrics": {"loss": 1.0}}
        ]
        monkeypatch.setattr(boards, "STALL_SECONDS", 1.0)
        wait_until(lambda: len(said) > 2)
        assert "Nothing has moved for 1 s. Ray has 1 nodes; free: " in said[2]
        assert listener.restarts == 0
        one.began(40, "step")
        wait_until(lambda: listener.restarts == 1)
    assert said[-1] == "The worker group was started again; it goes on from step 40."


@pytest.mark.ray
def test_a_failure_that_no_start_mends_is_kept(ray_cluster):
    board = new_board()
    assert failure_of(board) is None
    board.fail.remote("text-0.tar has gone")
    board.fail.remote("what followed from it")
    assert failure_of(board) == "text-0.tar has gone"
