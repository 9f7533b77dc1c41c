import json

import pytest

from pipelines.streams.quarantine import EVALUATION, Quarantine, count, record, recorded
from uml_core.errors import RunError


def line(url, key, error, found_in="stream"):
    return {"modality": "image", "found_in": found_in, "url": url, "key": key, "error": error}


def test_each_sample_counts_once_and_stays_known(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    first = Quarantine(path, 0.1, modality="image", rows=100)
    for _ in range(20):
        first.bad("a.tar", "k1", "broken")
    first.bad("b.tar", "k1", "broken too")
    assert len(first) == 2 and ("a.tar", "k1") in first and ("a.tar", "k2") not in first
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        line("a.tar", "k1", "broken"),
        line("b.tar", "k1", "broken too"),
    ]
    resumed = Quarantine(path, 0.1, modality="image", rows=100)
    assert resumed.errors == first.errors
    assert len(Quarantine(path, 0.1, modality="text", rows=100)) == 0


def test_the_budget_is_a_share_or_a_number():
    assert Quarantine(None, 0.01, rows=1000).limit == 10
    assert Quarantine(None, 0.01, rows=20).limit == 4
    assert Quarantine(None, 7, rows=1000).limit == 7
    strict = Quarantine(None, 0, modality="image", rows=1000)
    with pytest.raises(RunError, match="1 of 1000"):
        strict.bad("a.tar", "k", "broken")


def test_a_budget_that_was_used_up_stays_so_for_a_job_that_goes_on(tmp_path):
    for _ in range(2):
        resumed = Quarantine(tmp_path / "q.jsonl", 1, modality="image", rows=100)
        with pytest.raises(RunError, match="2 of 100"):
            for key in ("k1", "k2"):
                resumed.bad("a.tar", key, "broken")
    raised = Quarantine(tmp_path / "q.jsonl", 2, modality="image", rows=100)
    raised.bad("a.tar", "k2", "broken")
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2


def test_ranks_share_one_budget(tmp_path):
    path = tmp_path / "q.jsonl"
    ranks = [Quarantine(path, 3, modality="image", rows=100) for _ in range(2)]
    for i in range(3):
        for rank in ranks:
            rank.bad("a.tar", f"k{i}", "broken")
    assert len(path.read_text().splitlines()) == 3  # found by both, written by one
    ranks[0].errors.clear()
    with pytest.raises(RunError, match="4 of 100"):
        ranks[1].bad("a.tar", "k3", "broken")


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, 3, modality="image").bad("a.tar", "k0", "broken")
    with open(path, "a") as file:
        file.write('{"modality": "image", "url": "a.t\n[1]\n{"modality": "image", "url"')
    assert list(Quarantine(path, 3, modality="image").errors) == [("a.tar", "k0")]


def test_budgets_of_sets_that_share_a_file_are_apart(tmp_path):
    path = tmp_path / "q.jsonl"
    record(path, "image", [("a.tar", "s", "empty"), ("a.tar", None, "cut off")])
    stream = Quarantine(path, 2, modality="image", rows=100)
    validation, test = (
        Quarantine(path, 2, modality="image", rows=100, found_in=EVALUATION, urls={url})
        for url in ("a.tar", "b.tar")
    )
    for quarantine, url in ((stream, "a.tar"), (validation, "a.tar"), (test, "b.tar")):
        for key in ("k0", "k1"):
            quarantine.bad(url, key, "broken")
    assert recorded(path)[:3] == [
        line("a.tar", "s", "empty", "scan"),
        line("a.tar", None, "cut off", "scan"),
        line("a.tar", "k0", "broken"),
    ]
    assert count(path) == 6  # k0 and k1 of a.tar were met by two sets
    record(path, "image", [("a.tar", "s", "empty")])  # as a resumed run does
    assert len(recorded(path)) == 8
    with pytest.raises(RunError, match="at most 2"):
        test.bad("b.tar", "k2", "broken")


def test_lines_that_are_none_of_ours_are_passed_over(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('[]\n{"url": 3}\n' + json.dumps(line("a.tar", ["k"], "x")) + "\n\x00\n")
    assert recorded(path) == [] and count(path) == 0 and count(tmp_path / "none") == 0
