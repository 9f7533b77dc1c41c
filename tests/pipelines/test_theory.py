"""`uml theory`: what it writes, prints and returns."""

import argparse
import json
from dataclasses import replace

import pytest

from pipelines import cli, theory
from uml_core.errors import UserError


def arguments(**changes):
    given = {"out": None, "json": False, "dry_run": False}
    given |= {"seed": 0, "instances": 20, "seeds": 2, "steps": 200}
    return argparse.Namespace(**(given | changes))


@pytest.fixture(scope="module")
def computed():
    """The checks and one setting of the experiment, computed in a real worker process."""
    args = arguments()
    small = [replace(theory._setups(args)[-1], samples=400, validation=100, batch=16)]
    return theory._compute(args, small)


@pytest.fixture
def ready(computed, monkeypatch):
    monkeypatch.setattr(theory, "_compute", lambda args, setups: computed)
    return computed


def test_writes_the_contract_and_returns_0(ready, tmp_path, capsys):
    out = tmp_path / "new"
    assert theory.run(arguments(out=str(out))) == 0
    answer = json.loads((out / "theory.json").read_text())
    by_id = {check["id"]: check for check in answer["checks"]}
    assert {"T1", "T2", "T3", "C1", "C2", "C3"} <= {i for i, c in by_id.items() if c["expected"]}
    for check in answer["checks"]:
        assert check["holds"] is check["expected"]
        assert check["statement"] and isinstance(check["numbers"], dict)
    assert by_id["CX3-range"]["numbers"]["joint_variance"] == "inf"
    assert answer["as_expected"] is True
    assert answer["example"]["variance_x_only"][-1] == "inf"
    run = answer["gaussian"]["runs"][0]
    assert len(run["x_only"]) == 2 and len(run["x_only"][0]) == len(run["steps"]) == 5
    assert set(run["gains"]) == {"200"} and len(run["gains"]["200"]["ci95"]) == 2
    assert (out / "theory.png").stat().st_size > 50_000
    printed = capsys.readouterr().out
    assert "All checks are as expected." in printed
    paths = ("numbers", "figure")
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith(paths))


def test_json_goes_to_stdout_alone(ready, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(theory, "draw", lambda *drawn: None)
    assert theory.run(arguments(out=str(tmp_path / "new"), json=True)) == 0
    assert json.loads(capsys.readouterr().out)["as_expected"] is True


def test_a_check_that_is_not_as_expected_is_named_and_returns_1(
    computed, monkeypatch, tmp_path, capsys
):
    checks, curves = computed
    broken = [replace(checks[0], holds=not checks[0].holds), *checks[1:]]
    monkeypatch.setattr(theory, "_compute", lambda args, setups: (broken, curves))
    monkeypatch.setattr(theory, "draw", lambda *drawn: None)
    assert theory.run(arguments(out=str(tmp_path / "new"))) == 1
    assert "NOT as expected: L1" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "theory.json").read_text())["as_expected"] is False


def test_dry_run_computes_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(theory, "_compute", None)
    assert theory.run(arguments(out=str(tmp_path / "new"), dry_run=True)) == 0
    assert "4 settings x 2 seeds x 2 arms, 200 steps" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_all_wrong_arguments_are_listed_at_once():
    with pytest.raises(UserError) as error:
        theory.run(arguments(seed=-1, instances=3, seeds=1, steps=10))
    assert [p.split()[0] for p in error.value.problems] == [
        "--seed",
        "--instances",
        "--seeds",
        "--steps",
    ]


def test_an_older_result_is_never_overwritten(monkeypatch, tmp_path):
    (tmp_path / "theory.json").write_text("{}")
    monkeypatch.setattr(theory, "_compute", None)
    with pytest.raises(UserError, match="already holds"):
        theory.run(arguments(out=str(tmp_path)))


def test_the_command_line_reaches_the_verb(capsys):
    assert cli.main(["theory", "--dry-run", "--seeds", "3", "--steps", "100"]) == 0
    assert "3 seeds x 2 arms, 100 steps" in capsys.readouterr().out
