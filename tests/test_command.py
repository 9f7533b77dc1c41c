"""`uml` started where a project has packages of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["pipelines", "uml_core", "tune_spaces", "cluster"])
@pytest.mark.parametrize("module", [True, False])
def test_packages_of_the_same_name(name: str, module: bool, tmp_path: Path) -> None:
    text = "raise RuntimeError('mine')\n"
    if module:
        (tmp_path / f"{name}.py").write_text(text)
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    # As an installed script would: ours lies behind PYTHONPATH.
    start = f"import sys; sys.path.append({str(ROOT)!r}); import uml_command; " + (
        "sys.argv[1:] = ['--help']; raise SystemExit(uml_command.main())"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", start], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uml VERB")
