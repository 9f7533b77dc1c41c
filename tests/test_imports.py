"""Imports point one way: pipelines -> tune_spaces -> uml_core; cluster imports none of them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "uml_core": {"ray", "mlflow", "pipelines", "tune_spaces", "cluster", "tests"},
    "tune_spaces": {"pipelines", "cluster", "tests"},
    "pipelines": {"cluster", "tests"},
    "cluster": {"uml_core", "tune_spaces", "pipelines", "tests"},
}


def imported(source: str) -> dict[str, int]:
    """Top-level names that a module imports anywhere, also inside functions -> line."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            found.setdefault(name.partition(".")[0], node.lineno)
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files or package == "cluster"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported(path.read_text(encoding="utf-8")).items()
        if name in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_every_way_to_import():
    source = """
import ray.data as data
def late():
    from mlflow.tracking import client
    import importlib
    importlib.import_module("pipelines.cli")
    __import__("tune_spaces")
from . import sibling
"""
    assert set(imported(source)) == {"ray", "mlflow", "importlib", "pipelines", "tune_spaces"}


def test_no_file_is_longer_than_500_lines():
    long = {
        str(path.relative_to(ROOT)): count
        for package in (*FORBIDDEN, "tests")
        for path in (ROOT / package).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long, long
