"""The `uml` command itself: what a person asks before a run is answered at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from budget import FACTOR

from pipelines import cli

ROOT = Path(__file__).resolve().parents[2]
OURS = {"pipelines", "uml_core"}
# Runs the console entry and tells, on the last line of stderr, what it imported and what it cost.
ASK = """
import json, re, sys
before = set(sys.modules)
from pipelines.cli import main
code = main(sys.argv[1:])
top = {name.partition(".")[0] for name in set(sys.modules) - before}
megabytes = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([code, len(sys.modules), sorted(top), megabytes]), file=sys.stderr)
"""


def ask(*argv: str) -> tuple[int, int, set[str], float, str, float]:
    """(exit code, modules, new top-level names, MB, stdout, processor seconds) of `uml ARGV`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", ASK, *argv], cwd=ROOT, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, count, top, megabytes = json.loads(done.stderr.splitlines()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return code, count, set(top), megabytes, done.stdout, seconds


@pytest.mark.parametrize("argv", [["--help"], [], ["-h"], ["--version"], ["-V"]])
def test_help_and_version_import_nothing_but_the_command(argv):
    code, count, top, megabytes, said, seconds = ask(*argv)
    assert code == 0 and said
    assert top - set(sys.stdlib_module_names) <= OURS, top
    assert count < 250 and megabytes < 60
    assert seconds < 0.7 * FACTOR  # of the processor: other work on the machine counts for nothing


def test_a_verb_that_is_none_is_told_without_what_a_verb_needs():
    code, count, top, _, _, _ = ask("comapre", "shapes")
    assert code == 2 and count < 500
    assert not top & {"torch", "ray", "mlflow", "numpy", "scipy", "pydantic"}, top


# What a job's processes import before they work: each of a run's dozen pays for it, on two cores.
JOBS = ("pipelines.train", "pipelines.running.cohort", "pipelines.tuning.trial")
HEAVY = {
    "sklearn",
    "scipy.stats",
    "torchvision",
    "matplotlib",
    "mlflow",
    "torch.distributed.tensor",
}


@pytest.mark.parametrize(
    ("module", "not_needed"),
    [*((job, HEAVY) for job in JOBS), ("pipelines.streams.source", {*HEAVY, "torch"})],
)
def test_processes_of_a_job_import_what_they_need(module, not_needed):
    program = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not not_needed & set(json.loads(done.stdout))


def test_what_help_and_version_say(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in cli.VERBS)
    assert all(name in said for name in cli.packaged())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"uml {metadata.version(cli.DISTRIBUTION)}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"uml {verb}" in said.partition("\n\n")[2]


def test_help_lists_every_field_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert "train.checkpoint_every = 100" in said and "modalities.NAME.weight = 1.0" in said
    assert "of modalities of kind audio:" in said
