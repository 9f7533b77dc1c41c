"""A cluster's job server: its token, its Python, a job's logs and how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uml_core.errors import RunError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SECONDS = 20.0  # for one question
PATIENCE = 120.0  # without an answer: a head that restarts takes about a minute
LOCAL = ("127.0.0.1", "localhost", "::1")
TOKEN_FIX = (
    "copy the output of `ray get-auth-token` on the head into ~/.ray/auth_token here (mode 600), "
    "or name the file that holds it by RAY_AUTH_TOKEN_PATH"
)

_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def address_of(given: str | None) -> str:
    """The url of the job server. Raises UserError where none is named."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise UserError(
            "--address: name the cluster's dashboard, e.g. --address http://127.0.0.1:8265 with "
            "`ssh -L 8265:127.0.0.1:8265 HEAD` running (or set RAY_API_SERVER_ADDRESS)"
        )
    if "://" not in address:
        address = f"http://{address}"
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {given}: a dashboard's address is like http://HEAD:8265")
    return address.rstrip("/")


def risks(address: str) -> list[str]:
    """What a person should know about this way to the cluster."""
    parts = urllib.parse.urlsplit(address)
    found = []
    if parts.scheme == "http" and parts.hostname not in LOCAL:
        found.append(
            f"{address} is not encrypted: whoever reads along learns the token, and with it runs "
            "anything on the cluster. Use `ssh -L 8265:127.0.0.1:8265 HEAD` and "
            "--address http://127.0.0.1:8265"
        )
    if _is_open(address):
        found.append(
            f"{address} takes jobs without a token: everyone who reaches it can run anything on "
            "the cluster. Start Ray with RAY_AUTH_MODE=token on every node"
        )
    return found


def connect(address: str) -> JobSubmissionClient:
    """A client with this person's token. Raises UserError that says what to do where it fails."""
    # Read by Ray at import. Without it Ray sends no token even where there is one.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # goes before any address that is passed
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        why = str(error).strip().splitlines()[0].partition(". ")[0]
        raise UserError(f"{address} wants the cluster's token ({why}): {TOKEN_FIX}") from None
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"no job server answers at {address} ({_short(error)}): is the cluster up, is the "
            "tunnel open, has it ray[default]?"
        ) from None
    there = str(_ask(client, "/api/version")["ray_version"])
    if there != ray.__version__:
        raise UserError(
            f"the cluster has Ray {there}, here is {ray.__version__}: use the same version on both"
        )
    return client


def python_of(client: JobSubmissionClient) -> str:
    """The Python that the head's Ray runs on: a job's shell may find another one, or none."""
    try:
        nodes = _ask(client, "/nodes?view=summary")["data"]["summary"]
        head = next(node for node in nodes if node["raylet"]["isHeadNode"])
        command = next(w for w in head["cmdline"] if w.startswith("--python_worker_command="))
        return str(command.partition("=")[2].split()[0])
    except (LookupError, StopIteration, TypeError, ValueError, RuntimeError, OSError):
        return "python"  # this page of the dashboard is not part of Ray's public interface


def _ask(client: JobSubmissionClient, path: str) -> Any:
    return client._do_request("GET", path, timeout=SECONDS).json()


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    """Hands on the log of a job until the job has ended.

    A connection that breaks is made again, without repeating what was written. Raises RunError
    when the server stays away.
    """
    written, last = 0, time.monotonic()

    async def tail() -> None:
        nonlocal written, last
        seen = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, written - seen) :]
            seen += len(text)
            if fresh:
                write(fresh)
                written, last = seen, time.monotonic()

    while True:
        try:
            asyncio.run(tail())
            if client.get_job_status(job).is_terminal():
                rest = client.get_job_logs(job)[written:]
                if rest:
                    write(rest)
                return
            last = time.monotonic()
        except (RuntimeError, OSError) as error:  # aiohttp's and requests' errors are OSErrors
            if time.monotonic() - last > PATIENCE:
                raise RunError(
                    f"the job server has not answered for {PATIENCE:.0f} s ({_short(error)}); the "
                    f"job goes on if its cluster does: uml submit logs {job}"
                ) from error
        time.sleep(1)


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """How an ended job ended: the exit code of its command; 130 where it was stopped."""
    details = client.get_job_info(job)
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return 130
    return details.driver_exit_code or 1


def _is_open(address: str) -> bool:
    """Whether the server lists its jobs for somebody without a token."""
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=SECONDS) as answer:
            return isinstance(json.load(answer), list)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
