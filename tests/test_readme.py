"""README's picture of the repository holds: every file stands in its tree, every command exists."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pipelines import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> set[str]:
    """Paths named in README's tree."""
    block = README.split("## The repository")[1].split("```")[1]
    found: set[str] = set()
    folders: list[str] = []
    for line in filter(None, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            found.add("".join(folders) + name)
    return found


def test_every_file_stands_in_the_tree_and_every_entry_exists():
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked archive: git does not say which files belong to it")
    # Any trouble of git in a checkout is a failure: skipped, this check would be lost unseen.
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {
        name
        for name in tracked.stdout.split()
        if not name.startswith("tests/") and not name.endswith(("__init__.py", ".gitignore"))
    }
    named = tree()
    patterns = {name for name in named if "*" in name}  # many files of one kind in one line
    alike = {file for file in files if any(fnmatchcase(file, p) for p in patterns)}
    assert all(any(fnmatchcase(file, p) for file in files) for p in patterns)
    assert named - patterns == files - alike


def test_every_verb_and_make_target_that_readme_names_exists():
    verbs = set(re.findall(r"\buml ([a-z]+)\b", README))
    assert verbs and verbs <= set(cli.VERBS)
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets and all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)
