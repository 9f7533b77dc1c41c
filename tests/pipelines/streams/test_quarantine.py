import json

import pytest

from pipelines.streams.quarantine import FILE, Quarantine, count, record
from uml_core.errors import RunError


def test_each_sample_counts_once_and_stays_known(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    first = Quarantine(path, 0.1, modality="image", rows=100)
    for _ in range(20):
        first.bad("a.tar", "k1", "broken")
    first.bad("b.tar", "k1", "broken too")
    assert len(first) == 2 and ("a.tar", "k1") in first and ("a.tar", "k2") not in first
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"modality": "image", "url": "a.tar", "key": "k1", "error": "broken"},
        {"modality": "image", "url": "b.tar", "key": "k1", "error": "broken too"},
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


def test_what_the_scan_left_out_is_written_once_and_costs_no_budget(tmp_path):
    path = tmp_path / FILE
    found = [("a.tar", "k1", ".txt is empty"), ("b.tar", "", "cut off")]
    for _ in range(2):  # a resumed job scans again
        record(path, "text", "train", found)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["split"], line["url"], line["key"]) for line in lines] == [
        ("train", "a.tar", "k1"),
        ("train", "b.tar", ""),
    ]
    quarantine = Quarantine(path, 1, modality="text", rows=100)
    assert len(quarantine) == 0
    quarantine.bad("a.tar", "k2", "broken")
    assert count(path) == 3 and count(tmp_path / "none") == 0
