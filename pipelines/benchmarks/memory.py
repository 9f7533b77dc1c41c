"""Peak memory of a stream over a set larger than the object store, and over one 8 times as large.

Peak of the proportional set size (PSS) of all processes of the local Ray, the driver's included:
memory that processes share counts once.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines.benchmarks.workloads import BLOBS, segment
from pipelines.running.feed import open_stream
from pipelines.running.jobs import run_workers
from pipelines.running.runtime import ray_session
from pipelines.streams.shards import Index, load_index
from uml_core.specs import TrainSpec

STORE_BYTES = 256 << 20
TIMES = 8  # how much larger the large set is
EVERY = 0.25  # seconds between samples


def measure(root: Path, repeats: int) -> dict[str, list[float]]:
    """Peak bytes per repeat: {"small": [...], "large": [...]}."""
    small = BLOBS.index(root)
    large = _repeated(root, small)
    found: dict[str, list[float]] = {"small": [], "large": []}
    with ray_session(workers=1, streams=1, object_store_bytes=STORE_BYTES):
        board = _Turn.remote()  # type: ignore[attr-defined]
        watch = Watch(board)
        config = {"small": small, "large": large, "repeats": repeats, "turn": board}
        with watch:
            run_workers(
                _worker,
                {**config, "small": ray.put(small), "large": ray.put(large)},
                TrainSpec(workers=1, device="cpu", max_failures=0),
                root / "memory",
            )
    for name, peak in watch.peaks:
        found[name].append(peak)
    return found


def _repeated(root: Path, index: Index) -> Index:
    """The same shards under `TIMES` names each: hard links take no disk and are new to an index."""
    folder = root / "large"
    folder.mkdir(exist_ok=True)
    for shard in index.shards:
        for copy in range(TIMES):
            link = folder / f"copy{copy}-{os.path.basename(shard.url)}"
            if not link.exists():
                os.link(shard.url, link)
    return load_index("copy*.tar", str(folder), BLOBS.kind)


@ray.remote(num_cpus=0)
class _Turn:
    """What is being streamed at the moment."""

    def __init__(self) -> None:
        self._name: str | None = None

    def begin(self, name: str | None) -> None:
        self._name = name

    def name(self) -> str | None:
        return self._name


class Watch:
    """Samples the memory of this process and all below it while a stream runs."""

    def __init__(self, turn: Any) -> None:
        self.peaks: list[tuple[str, float]] = []
        self._turn = turn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = None
        while not self._stop.wait(EVERY):
            name = ray.get(self._turn.name.remote())
            if name is None:
                last = None
                continue
            if name != last:
                self.peaks.append((name, 0.0))
                last = name
            self.peaks[-1] = (name, max(self.peaks[-1][1], total_pss()))


def total_pss() -> float:
    """Bytes of this process and its descendants, shared memory counted once."""
    me = psutil.Process()
    return float(sum(map(_pss, [me, *me.children(recursive=True)])))


def _pss(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:  # it ended
        return 0
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line[:4] == "Pss:"))


def _worker(config: dict[str, Any]) -> None:
    turn = config["turn"]
    indices = {name: ray.get(config[name]) for name in ("small", "large")}
    modality = BLOBS.modality()
    for _ in range(config["repeats"]):
        for name, index in indices.items():
            batches = len(index) // 64
            with open_stream([segment(index, batches, name)], modality) as stream:
                ray.get(turn.begin.remote(name))
                for _ in range(batches):
                    next(stream)
            ray.get(turn.begin.remote(None))
            time.sleep(2 * EVERY)
