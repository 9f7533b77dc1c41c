"""The walk of docs/own-data.md, word by word."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    """The lines and here-documents of the page's bash blocks, without the set-up."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    out: list[str] = []
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M):
        out += [block] if "<<'EOF'" in block else block.splitlines()
    return [line for line in out if not line.startswith(("make ", ". "))]


# The page's comparisons take minutes; these settings change neither what they read nor write.
SHORTER = ["train.steps=40", "seeds=[0,1]"]


def follow(folder: Path, monkeypatch: pytest.MonkeyPatch, compare: bool) -> None:
    monkeypatch.chdir(folder)
    for line in commands():
        words = shlex.split(line, comments=True)
        if words[0] == "uml":
            trains = words[1] == "compare" and "--dry-run" not in words
            if compare or not trains:
                assert cli.main([*words[1:], *(SHORTER if trains else [])]) == 0, line
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        else:
            subprocess.run(["bash", "-ec", line], check=True)


def test_up_to_the_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow(tmp_path, monkeypatch, compare=False)
    shown = capsys.readouterr().out
    assert "image train   image        1       480        12       40-40   2.2 MB" in shown
    assert "No problem found." in shown
    (report,) = tmp_path.glob("runs/verify/*/verify.json")
    assert json.loads(report.read_text())["clean"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_up_to_the_reports(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(tmp_path, monkeypatch, compare=True)
    for name, target in (("mine", "image"), ("mine-audio", "audio")):
        (folder,) = tmp_path.glob(f"runs/{name}/*")
        assert json.loads((folder / "compare.json").read_text())["target"] == target
        assert (folder / "report.html").stat().st_size > 10_000
