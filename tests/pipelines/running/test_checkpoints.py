"""Which checkpoint a start goes on from: the newest whole one, never a torn or damaged one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.running import checkpoints
from pipelines.running.checkpoints import _seal, flaw_of, new_attempt, newest, tidy


def make(out: Path, attempt: int, at: int, ranks: int = 1, unit: str = "step") -> Path:
    """A checkpoint as a worker group leaves it: the files and manifests of all workers."""
    folder = out / "train" / f"attempt-{attempt:03d}" / f"checkpoint_{at:08d}_{attempt:08x}"
    for rank in range(ranks):
        part = out / f"worker-{rank}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"state-{rank}.pt").write_bytes(os.urandom(2000))
        _seal(part, at, unit, rank, ranks)
        folder.mkdir(parents=True, exist_ok=True)
        for path in part.iterdir():
            path.rename(folder / path.name)
    return folder


def test_the_newest_is_the_one_that_got_furthest(tmp_path):
    assert newest(tmp_path) == (None, [])
    make(tmp_path, 0, 40)
    best = make(tmp_path, 1, 60)
    make(tmp_path, 2, 50)  # went on from 40 because 60 was not readable then, say
    found, troubles = newest(tmp_path)
    assert (found.path, found.at, troubles) == (best, 60, [])


def cut(folder: Path) -> None:
    with open(folder / "state-0.pt", "r+b") as file:
        file.truncate(1999)


def flip(folder: Path) -> None:
    data = bytearray((folder / "state-0.pt").read_bytes())
    data[1000] ^= 1
    (folder / "state-0.pt").write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "state-0.pt").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "has 1999 bytes instead of 2000"), (flip, "not what was written"), (lose, "is missing")],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, said):
    good, bad = make(tmp_path, 0, 20), make(tmp_path, 0, 40)
    damage(bad)
    found, [trouble] = newest(tmp_path)
    assert found.path == good and str(bad) in trouble and said in trouble
    tidy(tmp_path)
    assert good.exists() and bad.exists()  # nothing that might be of use is removed
    where = checkpoints.where_it_stands(tmp_path)
    assert said in where and f"since step 20. The last checkpoint is {good};" in where


@pytest.mark.parametrize("torn", ["manifest-0.json", "manifest-1.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_torn_checkpoint_is_none_and_is_removed(tmp_path, torn, how):
    good, bad = make(tmp_path, 0, 20, ranks=2), make(tmp_path, 0, 40, ranks=2)
    path = bad / torn
    path.unlink() if how == "missing" else path.write_text(path.read_text()[:30])
    assert flaw_of(good) is None and "not written to its end" in flaw_of(bad)
    assert newest(tmp_path)[0].path == good
    tidy(tmp_path)
    assert good.exists() and not bad.exists()


def test_two_whole_checkpoints_are_kept(tmp_path):
    folders = [make(tmp_path, attempt, 20 * attempt) for attempt in range(4)]
    cut(folders[3])
    (tmp_path / "train" / "attempt-009").mkdir()  # a start that wrote nothing
    tidy(tmp_path)
    assert [folder.exists() for folder in folders] == [False, True, True, True]
    assert not (tmp_path / "train" / "attempt-000").exists()
    assert new_attempt(tmp_path) == "attempt-004"


def test_a_manifest_names_no_file_elsewhere(tmp_path):
    folder = make(tmp_path, 0, 20)
    manifest = json.loads((folder / "manifest-0.json").read_text())
    manifest["files"]["../../../worker-0"] = [0, ""]
    (folder / "manifest-0.json").write_text(json.dumps(manifest))
    assert flaw_of(folder) == "../../../worker-0 is missing"


def test_without_a_checkpoint_the_truth_is_told(tmp_path):
    assert "no checkpoint" in checkpoints.where_it_stands(tmp_path)
    assert new_attempt(tmp_path) == "attempt-000"
