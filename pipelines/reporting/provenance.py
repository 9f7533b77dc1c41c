"""What a result was made with: code, packages, data and machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from uml_core.addresses import redacted

PACKAGES = (
    "unpaired-multimodal-learner",
    "torch",
    "torchvision",
    "torchaudio",
    "ray",
    "mlflow",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "soundfile",
    "pillow",
)


class HasShards(Protocol):
    """The part of a shard index that provenance needs."""

    @property
    def shards(self) -> Any:
        """Each with .sha256 and len(.keys) samples."""


def git_state(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """``{"commit", "dirty"}`` of the code that runs, or None where it is not in a repository.

    A package installed below some other repository (a .venv in a project) is not part of that
    repository: `file` must be tracked there.
    """
    folder = file.resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Cores and memory this process may use, the platform and the names of its GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "memory_gb": round(memory_bytes() / 2**30, 1),
        "gpus": _gpu_names(),
    }


def memory_bytes() -> int:
    """Physical memory, or a container's smaller limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total


def _gpu_names() -> list[str]:
    import torch  # takes seconds

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def combined_sha256(hashes: Iterable[str]) -> str:
    """One hash of an ordered list of hashes."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def data_facts(indices: Mapping[str, Iterable[HasShards]]) -> dict[str, dict[str, Any]]:
    """Per modality the counts and one hash over all its shards (train, val, test in order).

    indices: modality -> its indices. Returns {modality: {"samples", "shards", "sha256"}}.
    """
    facts = {}
    for modality, parts in indices.items():
        shards = [shard for index in parts for shard in index.shards]
        facts[modality] = {
            "samples": sum(len(shard.keys) for shard in shards),
            "shards": len(shards),
            "sha256": combined_sha256(shard.sha256 for shard in shards),
        }
    return facts


def dataset_hash(data: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash of everything a run read; `data` as from `data_facts`, in any order."""
    return combined_sha256(f"{name} {data[name]['sha256']}" for name in sorted(data))


def environment(
    *,
    data: Mapping[str, Mapping[str, Any]],
    placement: Mapping[str, Any],
    guards: Mapping[str, Any],
    quarantined: int,
    **more: Any,
) -> dict[str, Any]:
    """The content of environment.json.

    data: as from `data_facts`. placement: {"workers": [{"rank", "device", ...}]}. guards: what
    `pipelines.sources.guards.check` reports. `more` holds optional parts such as ``forecast``.
    """
    return {
        "versions": versions(),
        "git": git_state(),
        "host": host(),
        "command": redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "placement": dict(placement),
        "data": {name: dict(facts) for name, facts in data.items()},
        "dataset_sha256": dataset_hash(data),
        "guards": dict(guards),
        "quarantined": quarantined,
        **more,
    }


def tags(env: Mapping[str, Any]) -> dict[str, str]:
    """The tags every tracked run of this environment carries."""
    found = {"dataset.sha256": env["dataset_sha256"]}
    if env["git"]:
        found["git.commit"] = env["git"]["commit"]
        found["git.dirty"] = str(env["git"]["dirty"]).lower()
    return found
