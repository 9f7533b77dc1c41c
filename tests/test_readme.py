"""Every command that README names exists."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_verb_and_make_target_that_readme_names_exists():
    verbs = set(re.findall(r"\buml ([a-z]+)\b", README))
    assert verbs and verbs <= set(cli.VERBS)
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets and all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)
