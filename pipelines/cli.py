"""The `uml` command: `uml VERB [RECIPE] [key=value ...] [--out DIR] [--json] [--dry-run]`.

Exit codes: 0 done, 2 the user's input is wrong (every problem listed, nothing written),
1 the run failed (what was lost, where the last checkpoint is), 130 interrupted.

A person who asks what there is gets the answer at once: PyTorch, Ray and MLflow take seconds and
nearly a gigabyte to import, so nothing that imports them is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipelines.files import disk_full, new_folder
from uml_core.addresses import is_url, redacted
from uml_core.errors import RunError, UserError, near

if TYPE_CHECKING:
    from dataclasses import Field

    from uml_core.specs import Recipe

VERBS = {
    "prepare": "a source (world, folders, CSV) -> shards and index",
    "embed": "a frozen encoder over shards -> shards of features, on Ray Data",
    "verify": "check shards against their index, their labels and each other",
    "train": "one run",
    "compare": "target-only baselines, UML and the permuted control, with paired statistics",
    "sweep": "which mix of modalities, searched on Ray Tune and confirmed on fresh seeds",
    "evaluate": "probes, test sets and analyses of a finished run",
    "export": "the target-only model of a finished run, for plain Python and MLflow",
    "predict": "an exported model over shards, files or tables, on Ray Data",
    "report": "write the HTML report of a finished run again",
    "theory": "the paper's theorems checked by number",
    "doctor": "everything that must hold before a run, with what to do where it does not",
    "plan": "steps, memory, time and cost of a run, and what it will wait for",
    "submit": "run a verb as a job on a cluster; its status, logs and end",
    "bench": "speed as ratios against ceilings in the same run",
}

PAPER = "paper"  # folder of recipes
DISTRIBUTION = "unpaired-multimodal-learner"
RUNTIME_ENV = "runtime_resources"  # where Ray unpacks what a submitted job brings along


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(version())
        return 0
    verb, *rest = argv
    try:
        if verb not in VERBS:
            raise UserError(f"no verb '{verb}'{near(verb, VERBS)}; `uml --help` lists all")
        module = importlib.import_module(f"pipelines.{verb}")
        made = parser(verb, module)
        if hasattr(module, "parse"):  # it passes arguments on
            return int(module.run(module.parse(made, rest)))
        return int(module.run(made.parse_intermixed_args(rest)))
    except UserError as error:
        from pipelines.reporting import terminal

        terminal.print_errors(error.problems)
        return 2
    except RunError as error:
        print(f"\nThe run failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nInterrupted. {stop}".rstrip(), file=sys.stderr)
        return 130
    except OSError as error:
        print(f"\nThe run failed: {_system_says(error)}", file=sys.stderr)
        return 1


def _system_says(error: OSError) -> str:
    """What the system refused, of which file, and what to do."""
    if disk_full(error):
        what, fix = f"the disk is full ({error})", "make space"
    elif error.errno is None:  # of a library: no word of the system's
        raise error
    else:
        named = f": {error.filename}" if error.filename else ""
        what, fix = f"{error.strerror or type(error).__name__}{named}", "see to it"
    return redacted(
        f"{what}. What was written before is whole; {fix} and run the same command with --resume "
        "where it has one"
    )


def usage() -> str:
    """What `uml --help` prints."""
    verbs = "\n".join(f"  {name:<10}{purpose}" for name, purpose in VERBS.items())
    return (
        "uml VERB [RECIPE] [key=value ...] [--out DIR] [--json] [--dry-run]\n\n"
        f"{verbs}\n\nRECIPE is a file or a packaged recipe: {', '.join(packaged())}.\n\n"
        f"Experiments of the paper; `uml compare NAME --dry-run` says where the data comes from:\n"
        f"{textwrap.fill(', '.join(of_the_paper()), 78, break_on_hyphens=False)}.\n\n"
        "`uml VERB --help` shows an example; `uml --version` says which release this is."
    )


def version() -> str:
    """What `uml --version` prints: the name and, where the package is installed, its version."""
    try:
        return f"uml {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:  # the code alone, as a submitted job brings it along
        return "uml (not installed: run from its source)"


class _Parser(argparse.ArgumentParser):
    """Lists the fields of a recipe, which are costly to know, only where help is shown."""

    takes_fields = False

    def format_help(self) -> str:
        if self.takes_fields:
            self.epilog = recipe_fields()
        return super().format_help()


def parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """The argument parser of a verb: its own arguments and the common ones."""
    out = _Parser(
        prog=f"uml {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    takes_recipe = getattr(module, "TAKES_RECIPE", False)
    out.takes_fields = takes_recipe or getattr(module, "TAKES_FIELDS", False)
    if takes_recipe:
        out.add_argument("recipe", help="a recipe file or the name of a packaged recipe")
        out.add_argument("overrides", nargs="*", help="fields to change, e.g. train.lr=1e-3")
    out.add_argument("--out", help="results folder (default: runs/<name>/<timestamp>)")
    out.add_argument("--json", action="store_true", help="print the result as JSON")
    out.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    module.add_arguments(out)
    return out


def recipe_fields() -> str:
    """Every field of a recipe with its default and meaning, for `--help`."""
    import dataclasses
    import inspect
    import re

    from uml_core import specs
    from uml_core.modalities import KINDS

    groups: dict[str, type] = {
        "": specs.Recipe,
        "modalities.NAME.": specs.ModalitySpec,
        "world.": specs.WorldSpec,
        "model.": specs.ModelSpec,
        "train.": specs.TrainSpec,
        "train.warmup.": specs.WarmupSpec,
        "train.adaptive.": specs.AdaptiveSpec,
        "probe.": specs.ProbeSpec,
        "compare.": specs.CompareSpec,
        "sweep.": specs.SweepSpec,
        "evaluate.": specs.EvaluateSpec,
        "tests.NAME.": specs.ShiftSpec,
    }
    lines = ["recipe fields (key=value on the command line):"]
    for prefix, spec in groups.items():
        source = inspect.getsource(spec)
        for field in dataclasses.fields(spec):
            if (
                field.name not in ("modalities", "tests", "options")
                and f"{prefix}{field.name}." not in groups
            ):
                comment = re.search(rf"^    {field.name}: [^#\n]*# (.+)$", source, re.MULTILINE)
                lines.append(_field_line(prefix, field, comment[1] if comment else ""))
    for kind, modality in KINDS.items():
        lines.append(f"of modalities of kind {kind}:")
        for field in dataclasses.fields(modality.Options):
            lines.append(_field_line("  ", field, field.metadata.get("help", "")))
    return "\n".join(lines)


def _field_line(prefix: str, field: Field, meaning: str) -> str:
    from dataclasses import MISSING

    default = ""
    if field.default is not MISSING:
        default = f" = {'null' if field.default is None else field.default}"
    text = f"{prefix}{field.name}{default}" + (f"  {meaning}" if meaning else "")
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="      ")


def add_member(parser: argparse.ArgumentParser) -> None:
    """The option of verbs that read shards without a recipe; there it is `member`."""
    parser.add_argument(
        "--member",
        metavar="SUFFIX",
        help="which member of a sample is meant, where there are several of the kind (jpg beside "
        "png), or its suffix has two parts (input.jpg)",
    )


def load_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the arguments name, with their overrides."""
    from uml_core import recipe

    path = Path(args.recipe)
    if is_url(args.recipe):
        raise UserError(f"{args.recipe}: a recipe is read from a local file; fetch it first")
    base = None
    if path.suffix not in (".yaml", ".yml"):
        known = [*packaged(), *of_the_paper()]
        if args.recipe not in known:
            raise UserError(
                f"no recipe '{args.recipe}'{near(args.recipe, known)}: give a .yaml file or one "
                f"of {', '.join(packaged())}, or of the paper's under {PAPER}/ (`uml --help`)"
            )
        path = Path(str(resources.files("pipelines"))) / "recipes" / f"{args.recipe}.yaml"
        base = Path.cwd()  # nobody's data lies beside packaged files
    return recipe.load(path, args.overrides, base=base)


def packaged() -> list[str]:
    """Names of the packaged recipes."""
    folder = resources.files("pipelines") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def of_the_paper() -> list[str]:
    """Names of the recipes of the paper's experiments, which need data from outside."""
    folder = Path(str(resources.files("pipelines"))) / "recipes" / PAPER
    return sorted(f"{PAPER}/{path.stem}" for path in folder.glob("*.yaml"))


def out_folder(args: argparse.Namespace, name: str, *, resume: bool = False) -> Path:
    """Where results go, not yet created. Raises UserError rather than touch an older run."""
    if args.out is None:
        if resume:
            raise UserError("--resume needs the --out folder of the job that it goes on with")
        if RUNTIME_ENV in Path.cwd().parts:
            raise UserError(
                "--out: Ray removes the folder of a submitted job at its end; name a folder on a "
                "disk that all nodes share by its absolute path"
            )
        return new_folder(Path("runs", name, datetime.now().strftime("%Y%m%d-%H%M%S")))
    out = new_folder(args.out) if not os.path.isfile(args.out) else Path(args.out).resolve()
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds something: choose another --out, or remove it")
    return out


if __name__ == "__main__":
    raise SystemExit(main())
