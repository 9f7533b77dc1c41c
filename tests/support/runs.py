"""Jobs as a person starts them, what they consumed, and what their plan says they should have."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.running.data import make_round, open_data, rounds_of
from pipelines.streams.plan import Plan
from uml_core import recipe as recipes

STALLED = 300.0  # seconds without any progress: more than a Ray takes to start on a busy machine
Consumed = dict[str, dict[int, Counter]]  # modality -> step -> multiset of keys, over all ranks


def consumed(out: Path) -> Consumed:
    """What a traced run took."""
    found: Consumed = {}
    for path in sorted((out / "trace").glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps = found.setdefault(entry["modality"], {})
            steps.setdefault(entry["step"], Counter()).update(entry["keys"])
    return found


def planned(recipe: str, overrides: Sequence[str] = ()) -> Consumed:
    """What an undisturbed run must take: the plan's rows at the schedule's steps."""
    loaded = recipes.load(recipe, overrides)
    [(shots, seed), *_] = rounds_of(loaded)
    data = open_data(loaded)
    schedule, size = loaded.schedule(), loaded.train.batch_size
    found: Consumed = {}
    for name, index in make_round(loaded, data, seed, shots).train.items():
        plan, number = Plan(len(index), size, seed, name), 0
        for step in range(schedule.total):
            for _ in range(schedule.counts(step).get(name, 0)):
                keys = [index.keys[row] for row in plan.batch(number)]
                found.setdefault(name, {}).setdefault(step, Counter()).update(keys)
                number += 1
    return found


def losses(out: Path) -> list[float]:
    """The loss curve: every modality's mean loss between validations."""
    history = json.loads((out / "metrics.json").read_text())["history"]
    return [at[name] for at in history["losses"] for name in sorted(at)]


def step_of(out: Path, rank: int = 0) -> int:
    """The last step that a traced run has begun; -1 before the first."""
    path = out / "trace" / f"rank-{rank}.jsonl"
    lines = path.read_bytes().splitlines()[-1:] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=-1)


def checkpoints_of(out: Path) -> list[Path]:
    """Folders of checkpoints that were written to their end, oldest first."""
    found = (out / "train").glob("attempt-*/checkpoint_*/manifest-0.json")
    return sorted(path.parent for path in found)


def wait_until(
    true: Callable[[], object],
    progress: Callable[[], object] = lambda: None,
    *,
    stalled: float = STALLED,
) -> None:
    """Polls a condition closely: what it waits for may last a few milliseconds.

    progress  anything that changes while the condition comes nearer. How long a step takes is up
              to the machine and what else it does; no change for `stalled` seconds is a failure.
    """
    seen, since = progress(), time.monotonic()
    asked = since
    while not true():
        time.sleep(0.005)
        if time.monotonic() < asked + 1:
            continue
        asked = time.monotonic()
        if (now := progress()) != seen:
            seen, since = now, asked
        assert asked < since + stalled, f"nothing has changed for {stalled:.0f} s: {seen}"


def written(*places: Path) -> int:
    """Bytes of files and of all that lies in folders: the progress of a job that writes them."""
    total = 0
    for place in places:
        for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
            with contextlib.suppress(OSError):  # it has just gone
                total += path.stat().st_size
    return total


class Meanwhile:
    """Does something while the block runs a job: `when()` comes true, then `do()` is called."""

    def __init__(self, when: Callable[[], object], do: Callable[[], object]) -> None:
        self._when, self._do = when, do
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self.done = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._error is None, repr(self._error)
        if kind is None:
            assert self.done, "the job ended before the fault"

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._when():
                    self._do()
                    self.done = True
                    return
                time.sleep(0.005)
        except BaseException as error:
            self._error = error


class Job:
    """`python -m pipelines.<verb>` in a session of its own, with a Ray of its own."""

    def __init__(self, verb: str, *arguments: str, log: Path) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"pipelines.{verb}", *arguments],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        )
        self.log = log
        self.out = Path(arguments[arguments.index("--out") + 1])

    def _written(self) -> int:
        return written(self.out, self.log)

    def wait_until(self, true: Callable[[], object]) -> None:
        """Waits for a state of a job that is still running."""

        def check() -> object:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return true()

        wait_until(check, self._written)

    def kill(self) -> None:
        """SIGKILL to the driver alone; returns when what it had started is gone too.

        Ray's two agents of the node hold nothing and notice only after a minute.
        """
        family = {p for p in descendants(self.process.pid) if not _command(p).endswith("Agent")}
        assert family, "the job has no Ray"
        self.process.kill()
        self.process.wait()
        wait_until(
            lambda: not family & living(),
            lambda: [_command(pid) for pid in sorted(family & living())],
        )

    def interrupt(self) -> int:
        """Ctrl-C in its terminal: SIGINT to the whole group. Returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        try:
            wait_until(lambda: self.process.poll() is not None, self._written)
            return self.process.returncode
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self._log.close()


def _command(pid: int) -> str:
    """The first word of a process's command line; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return ""


def _states() -> dict[int, tuple[int, str]]:
    """Process id -> (parent, state) of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        found[int(path.parent.name)] = (int(parent), state)
    return found


def living() -> set[int]:
    """Processes that are there and no zombies."""
    return {pid for pid, (_, state) in _states().items() if state != "Z"}


def descendants(pid: int) -> set[int]:
    """Everything that a process started, directly or not."""
    states, found, new = _states(), set(), {pid}
    while new:
        new = {child for child, (parent, _) in states.items() if parent in new} - found
        found |= new
    return found


def trial_processes() -> list[int]:
    """Process ids of Tune trials on the Ray that this process started, and on no other."""
    return [p for p in descendants(os.getpid()) if _command(p).startswith("ray::ImplicitFunc")]


def training_workers() -> dict[int, str]:
    """Process id -> node id of the training workers that are alive on the connected Ray."""
    import ray
    from ray.util.state import list_actors

    alive = list_actors(
        ray.get_runtime_context().gcs_address,
        filters=[("state", "=", "ALIVE"), ("class_name", "=", "RayTrainWorker")],
    )
    return {actor.pid: actor.node_id for actor in alive}
