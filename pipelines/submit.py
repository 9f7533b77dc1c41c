"""Runs a verb as a job on a Ray cluster: the same command, with an address.

    uml submit compare shapes --address http://127.0.0.1:8265 --out /mnt/shared/runs/one
    uml submit sweep mine.yaml --space my_space.py --out /mnt/shared/runs/two --detach
    uml submit status                     all jobs; or one: uml submit status ID
    uml submit logs ID                    what it has said so far, and what it says from now on
    uml submit stop ID

This package and the files that the command names travel with the job; data does not: it lies on a
disk that all nodes share, or in a store. --out must lie on such a disk too. Logs are followed until
the job ends, and its exit code is this command's; Ctrl-C asks whether the job should end as well.

The cluster's token is taken from ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN. With
RAY_AUTH_MODE=disabled none is sent; a cluster that takes such jobs takes everybody's.

The same without this command, from a checkout on a machine that reaches the cluster:
    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python -m pipelines.compare shapes --out /mnt/shared/runs/one
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cli
from pipelines.reporting import terminal
from pipelines.running import job_server, upload
from pipelines.streams.storage import is_remote
from uml_core import specs
from uml_core.errors import UserError, near
from uml_core.typed import MAX_TEXT, read_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ABOUT_JOBS = ("status", "logs", "stop")
# Where jobs deliver to, and how they reach stores: taken along wherever they are set here.
CARRIED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments; all others are those of the verb that is submitted."""
    parser.add_argument("what", metavar="VERB|status|logs|stop", help="what the cluster should run")
    parser.add_argument("--address", help="the dashboard, e.g. http://127.0.0.1:8265")
    parser.add_argument("--detach", action="store_true", help="return once the job is submitted")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of the job, by default with its value here; AWS_ACCESS_KEY_ID, say. "
        "Values are neither shown nor logged. Always taken along: " + ", ".join(CARRIED),
    )
    parser.add_argument(
        "--pip",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that the job needs and the cluster's image lacks, e.g. 'optuna>=4'",
    )
    parser.add_argument(
        "--locked",
        action="store_true",
        help="install the exact packages that this version was tried with, for a cluster whose "
        "image is not this project's (minutes at the first job of a node)",
    )
    parser.add_argument(
        "--image-code",
        action="store_true",
        help="run the package of the cluster's image instead of this one",
    )
    parser.add_argument("--python", help="the cluster's Python (default: the one its Ray runs on)")
    parser.add_argument("--id", help="the job's id (default: Ray makes one)")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `rest` holds those of the submitted verb."""
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    return args


def run(args: argparse.Namespace) -> int:
    """The verb: returns the exit code."""
    if args.what in ABOUT_JOBS:
        return _about(args)
    command = command_of(args)
    env = upload.environment([*(name for name in CARRIED if name in os.environ), *args.env])
    with tempfile.TemporaryDirectory(prefix="uml-submit-") as folder:
        size = upload.pack(Path(folder), command, env, code=not args.image_code)
        if args.dry_run:
            print(
                f"would submit: python -m pipelines.{args.what} {' '.join(command)}\n"
                f"upload {size / (1 << 20):.1f} MiB; variables {', '.join(sorted(env)) or 'none'}"
            )
            return 0
        address = job_server.address_of(args.address)
        client = job_server.connect(address)
        for risk in job_server.risks(address):
            terminal.note(risk)
        pip = [*(upload.locked() if args.locked else ()), *args.pip]
        python = args.python or job_server.python_of(client)
        job = client.submit_job(
            entrypoint=upload.entrypoint(python, args.what, command),
            runtime_env={"working_dir": folder, **({"pip": pip} if pip else {})},
            submission_id=args.id,
            metadata={"verb": args.what, "out": args.out},
        )
    if args.detach:
        _tell(args, client, job)
        return 0
    terminal.note(f"{job}: submitted to {address}")
    return _follow(args, client, job)


def command_of(args: argparse.Namespace) -> list[str]:
    """The submitted verb's arguments, checked as far as they can be without the cluster.

    Raises UserError with every problem: a verb, a recipe or a field that is wrong, a path that the
    cluster cannot know.
    """
    verbs = [name for name in cli.VERBS if name != "submit"]
    if args.what not in verbs:
        hint = near(args.what, (*verbs, *ABOUT_JOBS))
        raise UserError(f"no verb '{args.what}'{hint}; `uml --help` lists all")
    module = importlib.import_module(f"pipelines.{args.what}")
    command = list(args.rest)
    problems = []
    if args.out is None or not os.path.isabs(args.out):
        problems.append(
            "--out: name a folder by its absolute path, on a disk that all nodes share. The job's "
            "own folder is removed at its end"
        )
    else:
        command += ["--out", args.out]
    made = cli.parser(args.what, module)
    known = made.parse_intermixed_args(command)
    if getattr(module, "TAKES_RECIPE", False) or getattr(known, "recipe", None):
        root = _data_root(known, args.out or "/", problems)
        if root is not None:
            command.insert(1, f"data_root={root}")
    if problems:
        raise UserError(problems)
    return command


def _data_root(args: argparse.Namespace, out: str, problems: list[str]) -> str | None:
    """Where embedded data goes, for a recipe that does not say; None where nothing is to add.

    Notes as a problem what the cluster would look for in the job's own folder.
    """
    try:
        recipe = cli.load_recipe(args)
    except UserError as error:
        problems += error.problems
        return None
    given = [o.partition("=")[2] for o in args.overrides if o.startswith("data_root=")]
    if not given:
        written = _written_root(args.recipe)
        if written is None and recipe.world is not None:
            return _beside(out, recipe)
        given = [written or "."]
    if not (os.path.isabs(given[-1]) or is_remote(given[-1])):
        problems.append(
            f"data_root: the cluster does not know '{given[-1]}'. Give the absolute path of a "
            "folder that all nodes share, or a URI: data_root=/mnt/shared/data, s3://..."
        )
    return None


def _written_root(name: str) -> str | None:
    """`data_root` as the recipe file has it; that of a packaged recipe is for this machine."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return None
    with open(path, encoding="utf-8") as file:
        raw = read_yaml(file.read(MAX_TEXT))
    return raw.get("data_root") if isinstance(raw, dict) else None


def _beside(out: str, recipe: specs.Recipe) -> str:
    assert recipe.world is not None
    root = str(Path(out).parent / "data" / recipe.world.name)
    terminal.note(f"The world {recipe.world.name} is generated in {root} on the cluster.")
    return root


# ------------------------------------------------------------------------------ following it


def _follow(args: argparse.Namespace, client: JobSubmissionClient, job: str) -> int:
    """Shows a job's log to its end; on Ctrl-C asks what should become of the job."""
    stream = sys.stderr if args.json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    while True:
        try:
            job_server.follow(client, job, write)
        except KeyboardInterrupt:
            if _wants_to_go_on(client, job):
                continue
            return 130
        if args.json:
            _tell(args, client, job)
        return job_server.exit_code(client, job)


def _wants_to_go_on(client: JobSubmissionClient, job: str) -> bool:
    """Asks after Ctrl-C; without a terminal the job goes on and only the log ends."""
    answer = ""
    if sys.stdin.isatty():
        try:
            print(file=sys.stderr)
            answer = input("Stop the job as well? [y = stop it, n = leave it running, c = go on] ")
        except (KeyboardInterrupt, EOFError):
            answer = ""
    answer = answer.strip().lower()[:1]
    if answer == "c":
        return True
    if answer == "y":
        client.stop_job(job)
        terminal.note(f"{job} is asked to stop; --resume goes on from its last checkpoint.")
    else:
        terminal.note(
            f"{job} goes on. Its log: uml submit logs {job}. Its end: uml submit stop {job}"
        )
    return False


def _about(args: argparse.Namespace) -> int:
    """`status`, `logs` and `stop`."""
    if len(args.rest) > 1 or (not args.rest and args.what != "status"):
        raise UserError(
            f"uml submit {args.what} takes one job's id; `uml submit status` lists them"
        )
    client = job_server.connect(job_server.address_of(args.address))
    if not args.rest:
        return _list(args, client)
    [job] = args.rest
    try:
        client.get_job_info(job)
    except RuntimeError:
        ids = [str(d.submission_id) for d in client.list_jobs()]
        raise UserError(f"the cluster has no job '{job}'{near(job, ids)}") from None
    if args.what == "logs":
        return _follow(args, client, job)
    if args.what == "stop" and not client.stop_job(job):
        terminal.note(f"{job} had ended before.")
    _tell(args, client, job)
    return 0


def _list(args: argparse.Namespace, client: JobSubmissionClient) -> int:
    found = [_facts(details) for details in client.list_jobs() if details.submission_id]
    if args.json:
        print(json.dumps(found))
        return 0
    rows = [[f["id"], f["status"], f["verb"] or "", f["out"] or ""] for f in found]
    terminal.console().print(terminal.table(["job", "status", "verb", "out"], rows))
    return 0


def _tell(args: argparse.Namespace, client: JobSubmissionClient, job: str) -> None:
    facts = _facts(client.get_job_info(job))
    if args.json:
        print(json.dumps(facts))
        return
    terminal.print_paths({"job": job, "status": facts["status"], "out": facts["out"] or "unknown"})


def _facts(details: Any) -> dict[str, Any]:
    metadata = details.metadata or {}
    return {
        "id": details.submission_id,
        "status": str(details.status.value),
        "verb": metadata.get("verb"),
        "out": metadata.get("out"),
        "exit_code": details.driver_exit_code,
        "message": details.message,
    }


if __name__ == "__main__":
    raise SystemExit(cli.main(["submit", *sys.argv[1:]]))
