"""MLflow tracking that survives restarts and never disturbs the work it tracks.

Only the driver writes. Every call appends one event to ``<out>/tracking-spool.jsonl`` and
returns; a thread delivers the events in order and empties the file. A server that is down
therefore costs nothing: its events wait, and are delivered when it is back or when the same
output folder is opened again. Delivery is idempotent (runs are found by a tag, metric steps that
are already there are skipped), so an event may be delivered twice without harm.

``<out>/tracking.json`` keeps the run ids, so that a resumed job continues its runs.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.files import append_line, write_text
from pipelines.reporting import terminal
from pipelines.reporting.mlflow_store import (
    MAX_METRICS,
    PARENT,
    Store,
    is_refusal,
    prepare_mlflow,
    read_state,
    resolve_uri,
)
from uml_core.addresses import redacted, redacted_tree

SPOOL = "tracking-spool.jsonl"

_FIRST_PAUSE, _LAST_PAUSE = 1.0, 30.0  # seconds between attempts while the store is down


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names: {"train": {"lr": 1e-3}} -> {"train.lr": "0.001"}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[f"{prefix}{name}"] = text[:6000]
    return flat


class _Spool:
    """Events not yet delivered, in memory and in a file; the file is emptied with the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque()
        self.trouble: OSError | None = None  # why events are kept in memory alone
        if path.is_file():
            lines = path.read_text().splitlines(True)
            complete = [line for line in lines if line.endswith("\n")]
            self._events.extend(json.loads(line) for line in complete)
            if len(complete) < len(lines):  # torn by a crash: it would spoil the next
                write_text(path, "".join(complete))

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._lock:
            return iter(list(self._events))

    def append(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append(event)
            try:
                append_line(self.path, json.dumps(event))
            except OSError as error:
                self.trouble = error

    def batch(self) -> list[dict[str, Any]]:
        """The first event, with the metrics of the same run that follow it directly."""
        with self._lock:
            taken: list[dict[str, Any]] = []
            room = MAX_METRICS
            for event in self._events:
                room -= len(event.get("metrics", ()))
                first = taken[0] if taken else event
                if taken and (
                    event["kind"] != "metrics" or event["run"] != first["run"] or room < 0
                ):
                    break
                taken.append(event)
                if first["kind"] != "metrics":
                    break
            return taken

    def done(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                self._events.popleft()
            if not self._events:
                self.path.unlink(missing_ok=True)


class Tracker:
    """One parent run and its nested child runs, written by the driver alone.

    Use it as a context manager: runs still open at the end get FINISHED, FAILED or KILLED.

        with Tracker.open(out, "shapes") as tracker:
            tracker.start(PARENT, "compare", params=recipe, tags=provenance.tags(env))
            tracker.start("uml/0", "uml, seed 0", params={"seed": 0}, tags={"arm": "uml"})
            tracker.log_metrics("uml/0", {"loss": 0.3}, step=10)
            tracker.end("uml/0")
            tracker.log_artifact(PARENT, out / "report.html")
    """

    def __init__(self, store: Store, spool: _Spool, say: Callable[[str], None]) -> None:
        self._store, self._spool, self._say = store, spool, say
        self._started = set(store.state["runs"]) | {event["run"] for event in spool}
        self._open: set[str] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._down = False
        self._told_down = False
        self._num_refused = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        out: Path,
        experiment: str,
        tracking_uri: str | None = None,
        say: Callable[[str], None] = terminal.note,
    ) -> Tracker:
        """Opens the runs of `out` (a folder), new ones or those of an interrupted job.

        The store is `tracking_uri`, else MLFLOW_TRACKING_URI, else the one used before, else
        SQLite in the ``runs`` folder. `say` gets the few sentences a person should read.
        """
        prepare_mlflow()
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        store = Store(out, experiment, resolve_uri(out, tracking_uri))
        return cls(store, _Spool(out / SPOOL), say)

    def start(
        self,
        key: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Begins or continues the run `key`; nested `params` are flattened, set once."""
        if key != PARENT and PARENT not in self._started:
            raise ValueError("start the parent run first")
        self._started.add(key)
        self._open.add(key)
        texts = {_legal(k): v for k, v in flatten(params or {}).items()}
        self._emit("start", key, name=name, params=texts, tags=dict(tags or {}))

    def has(self, key: str) -> bool:
        """Whether the run `key` was started, now or by an earlier job of the same folder."""
        return key in self._started

    def log_metrics(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step. A step a metric already has is kept as it was."""
        now = _now()
        rows = [[_legal(name), float(value), int(step), now] for name, value in metrics.items()]
        self._emit_metrics(key, rows)

    def log_series(
        self, key: str, name: str, steps: Iterable[int], values: Iterable[float]
    ) -> None:
        """A whole curve of one metric."""
        now = _now()
        pairs = zip(steps, values, strict=True)
        self._emit_metrics(key, [[_legal(name), float(v), int(s), now] for s, v in pairs])

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Adds or replaces tags."""
        self._emit("tags", key, tags=dict(tags))

    def describe(self, key: str, text: str) -> None:
        """The description that MLflow shows at the top of a run (Markdown)."""
        self.set_tags(key, {"mlflow.note.content": text})

    def log_artifact(self, key: str, path: Path, folder: str | None = None) -> None:
        """A file or folder; it must stay where it is until it is delivered."""
        self._emit("artifact", key, path=str(Path(path).resolve()), folder=folder)

    def register(self, key: str, folder: Path, name: str, tags: Mapping[str, str]) -> None:
        """A model folder as artifact `model` of a run and as a version of the model `name`.

        A run has one version; tags of a version that exists already are replaced.
        """
        path = str(Path(folder).resolve())
        self._emit("register", key, path=path, name=_legal(name), tags=dict(tags))

    def end(self, key: str, status: str = "FINISHED") -> None:
        """Ends a run: FINISHED, FAILED or KILLED."""
        self._open.discard(key)
        self._emit("end", key, status=status)

    def close(self, status: str = "FINISHED") -> None:
        """Ends what is open, delivers what can be delivered now and says what could not."""
        for key in sorted(self._open, reverse=True):  # the parent's key sorts first: it ends last
            self.end(key, status)
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        if self._num_refused:
            self._say(f"MLflow refused {self._num_refused} tracking events; they are lost.")
        if len(self._spool):
            lost = "; the last of them are lost" if self._spool.trouble else ""
            self._say(
                f"{len(self._spool)} tracking events wait in {self._spool.path}{lost}; "
                f"`uml report {self._store.out}` delivers them once MLflow is back."
            )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    @property
    def where(self) -> str:
        """How a person looks at the runs."""
        uri = self._store.state["uri"]
        return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"

    def _emit(self, kind: str, key: str, **content: Any) -> None:
        if key not in self._started:
            raise ValueError(f"run {key!r} was not started")
        before = self._spool.trouble
        if kind not in ("artifact", "register"):  # their paths are opened later
            content = redacted_tree(content)
        self._spool.append({"kind": kind, "run": key, "time": _now(), **content})
        if before is None and self._spool.trouble is not None:
            self._say(f"Tracking events are kept in memory only: {self._spool.trouble}.")
        with self._wake:
            self._wake.notify()

    def _emit_metrics(self, key: str, rows: list[list[Any]]) -> None:
        for start in range(0, len(rows), MAX_METRICS):
            self._emit("metrics", key, metrics=rows[start : start + MAX_METRICS])

    def _work(self) -> None:
        """The thread: delivers until closed, pausing ever longer while the store is down."""
        pause = _FIRST_PAUSE
        while True:
            with self._wake:
                if not len(self._spool):
                    if self._closing:
                        return
                    self._wake.wait()
                    continue
            events = self._spool.batch()
            try:
                self._store.deliver(events)
            except Exception as error:
                self._store.forget_steps()
                if is_refusal(error):
                    self._refused(events, error)
                    continue
                self._unreachable(error)
                if self._closing:
                    return
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=pause)
                pause = min(2 * pause, _LAST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            self._spool.done(len(events))
            if self._down:
                self._down = False
                self._say("MLflow is back; what had to wait is being delivered.")

    def _refused(self, events: list[dict[str, Any]], error: Exception) -> None:
        if not self._num_refused:
            self._say(f"MLflow refuses a tracking event ({events[0]['kind']}): {_short(error)}")
        self._num_refused += len(events)
        self._spool.done(len(events))

    def _unreachable(self, error: Exception) -> None:
        self._down = True
        if not self._told_down:
            self._told_down = True
            store = self._store
            reason = _short(error)
            self._say(
                f"MLflow at {store.state['uri']} does not take events ({reason}). The work goes "
                f"on; they wait in {self._spool.path} and are delivered when it is back."
            )


def deliver_waiting(out: Path) -> None:
    """Delivers what an earlier job of `out` could not; does nothing where nothing waits."""
    if (Path(out) / SPOOL).is_file():
        Tracker.open(out, read_state(out)["experiment"]).close()


def _now() -> int:
    return int(time.time() * 1000)


def _legal(name: str) -> str:
    """MLflow takes only these characters in names."""
    return re.sub(r"[^\w.\-/ :]", "_", name)[:250]


def _short(error: Exception) -> str:
    text = redacted(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
