"""Where tracking events end up: an MLflow store, written to so that repeating does no harm.

Runs are found by a tag before one is made, params are set once, and a step that a metric already
has is skipped; so an event may be delivered twice. ``<out>/tracking.json`` keeps the run ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files import cache_folder, write_text
from uml_core.addresses import HIDDEN, absolute, is_url, redacted

PARENT = ""  # the key of the parent run; children have any other key
STATE = "tracking.json"
RUN_TAG = "uml.run"
MAX_METRICS, MAX_PARAMS = 1000, 100  # per request, MLflow's own limits

# MLflow's defaults (7 retries, 120 s) would hold a finished job for minutes at a dead server.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder that the shell names is still written to
}
_NO_PATHS = ("databricks", "uc:")  # stores that are named by a word
# Answers that will be the same next time; everything else (network, locks, 5xx) is retried.
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}


def prepare_mlflow() -> None:
    """Sets what MLflow reads from the environment, where the user did not, and imports it.

    Variables of other work can make the import fail: then nothing is delivered, and it is told
    like a store that does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(Exception):  # in the caller's thread: first imports are not for two
        import mlflow  # noqa: F401


def runs_root(out: Path) -> Path:
    """Where the default store of `out` lies: the folder ``runs`` above it, else `out` itself."""
    out = Path(out).resolve()
    return next((p for p in out.parents[:3] if p.name == "runs"), out)


def resolve_uri(out: Path, tracking_uri: str | None = None) -> str:
    """The store of `out`: given, or MLFLOW_TRACKING_URI, or as last time, or SQLite in runs."""
    last = read_state(out).get("uri")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or last
    if not uri:
        return _sqlite(runs_root(out) / "mlflow.db")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return _sqlite(Path(uri.removeprefix("sqlite:///")).resolve())
    if uri.startswith("file:") or not (is_url(uri) or uri.startswith(_NO_PATHS)):
        return Path(absolute(uri)).as_uri()
    return uri


def _sqlite(path: Path) -> str:
    """The url of a database. No such url can name a folder with ? in it, but a link to one."""
    if "?" in str(path):
        mark = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:12]
        link = Path(cache_folder("stores"), mark)
        with contextlib.suppress(OSError):  # then nothing can be opened there, which is told
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.parent, target_is_directory=True)
        path = link / path.name
    return f"sqlite:///{path}"


def _without_secrets(uri: str) -> str:
    """What of a store's address is kept; the rest comes from the environment again."""
    return redacted(uri).replace(f"{HIDDEN}@", "").removesuffix(f"?{HIDDEN}")


def read_state(out: Path) -> dict[str, Any]:
    path = Path(out) / STATE
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_state(out: Path, state: Mapping[str, Any]) -> None:
    write_text(Path(out) / STATE, json.dumps(state, indent=1) + "\n")


class RefusedError(Exception):
    """An event that can never be delivered."""


class Store:
    """Writes events to MLflow; may raise anything MLflow raises, and can then be tried again."""

    def __init__(self, out: Path, experiment: str, uri: str) -> None:
        self.out, self.experiment, self.uri = out, experiment, uri
        self.state = read_state(out)
        shown = _without_secrets(uri)
        if self.state.get("uri") != shown:  # another store knows nothing of the old run ids
            self.state |= {"uri": shown, "runs": {}}
        self.state.setdefault("id", uuid.uuid4().hex)
        self.state["experiment"] = experiment
        _write_state(out, self.state)
        self._client: Any = None
        self._experiment_id: str | None = None
        self._steps: dict[tuple[str, str], set[int]] = {}  # (run id, metric) -> steps it has

    def deliver(self, events: list[dict[str, Any]]) -> None:
        """One event, or several of kind "metrics" of one run."""
        self._connect()
        first = events[0]
        run_id = self._start(first) if first["kind"] == "start" else self._run_id(first["run"])
        match first["kind"]:
            case "start" | "tags":
                self._facts(run_id, first.get("params", {}), first["tags"])
            case "metrics":
                self._metrics(run_id, [metric for event in events for metric in event["metrics"]])
            case "artifact":
                self._artifact(run_id, Path(first["path"]), first["folder"])
            case "register":
                self._register(run_id, first)
            case "end":
                self._client.set_terminated(run_id, first["status"], first["time"])

    def forget_steps(self) -> None:
        """After a failure nobody knows what arrived: ask the store again."""
        self._steps.clear()

    def _connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            if self._client is None:
                if self.uri.startswith("sqlite:////"):
                    folder = Path(self.uri.removeprefix("sqlite:///")).parent
                    folder.mkdir(parents=True, exist_ok=True)
                self._client = MlflowClient(tracking_uri=self.uri)
            if self._experiment_id is None:
                self._experiment_id = self._find_experiment()
        except MlflowException as error:  # whatever its code says, no event was refused yet
            raise ConnectionError(str(error)) from error

    def _run_id(self, key: str) -> str:
        if key not in self.state["runs"]:
            raise RefusedError(f"the run {key!r} could not be made")
        return self.state["runs"][key]

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            # Without a server MLflow would put artifacts into ./mlruns of the working directory.
            remote = self.uri.startswith(("http:", "https:", "databricks"))
            place = None if remote else (runs_root(self.out) / "mlflow-artifacts").as_uri()
            try:
                return self._client.create_experiment(self.experiment, artifact_location=place)
            except MlflowException:  # another driver may have been faster
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise RuntimeError(
                f"experiment {self.experiment!r} is deleted in this store; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return found.experiment_id

    def _start(self, event: dict[str, Any]) -> str:
        """The run of this key: known from before, or found by its tag, or made now."""
        key = event["run"]
        run_id = self._known(self.state["runs"].get(key)) or self._tagged(key)
        if run_id is None:
            tags = {RUN_TAG: self._tag(key)}
            if key != PARENT:
                tags["mlflow.parentRunId"] = self._run_id(PARENT)
            run_id = self._client.create_run(
                self._experiment_id, event["time"], tags, event["name"]
            ).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        if self.state["runs"].get(key) != run_id:
            self.state["runs"][key] = run_id
            _write_state(self.out, self.state)
        return run_id

    def _tag(self, key: str) -> str:
        return f"{self.state['id']}/{key}"

    def _known(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id if info.lifecycle_stage == "active" else None

    def _tagged(self, key: str) -> str | None:
        # A request that timed out may have made the run all the same.
        query = f"tags.`{RUN_TAG}` = '{self._tag(key)}'"
        found = self._client.search_runs([self._experiment_id], query, max_results=1)
        return found[0].info.run_id if found else None

    def _facts(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(run_id).data.params if params else {}
        new = [Param(name, value) for name, value in params.items() if name not in there]
        for start in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(run_id, params=new[start : start + MAX_PARAMS], synchronous=True)
        if tags:
            self._client.log_batch(
                run_id, tags=[RunTag(k, v) for k, v in tags.items()], synchronous=True
            )

    def _artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        if not path.exists():
            raise RefusedError(f"{path} is no longer there")
        self._client.log_artifact(run_id, path, folder)

    def _register(self, run_id: str, event: dict[str, Any]) -> None:
        """The version of this run: the one there is, else a new one of its artifact `model`."""
        from mlflow.exceptions import MlflowException

        path, name = Path(event["path"]), event["name"]
        if not path.is_dir():
            raise RefusedError(f"{path} is no longer there")
        self._client.log_artifacts(run_id, path, "model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            version = found[0].version
        else:
            source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
            version = self._client.create_model_version(name, source, run_id).version
        for key, value in event["tags"].items():
            self._client.set_model_version_tag(name, version, key, value)

    def _metrics(self, run_id: str, metrics: list[list[Any]]) -> None:
        from mlflow.entities import Metric

        new = []
        for name, value, step, when in metrics:
            if (run_id, name) not in self._steps:
                history = self._client.get_metric_history(run_id, name)
                self._steps[run_id, name] = {metric.step for metric in history}
            if step not in self._steps[run_id, name]:
                self._steps[run_id, name].add(step)
                new.append(Metric(name, value, when, step))
        for start in range(0, len(new), MAX_METRICS):
            self._client.log_batch(
                run_id, metrics=new[start : start + MAX_METRICS], synchronous=True
            )


def is_refusal(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, RefusedError)
