"""Starts the Ray Train worker group of a job and turns its failures into advice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from pipelines.running.runtime import TRAINER_CPUS
from uml_core.errors import RunError
from uml_core.specs import TrainSpec

STORAGE = "train"  # Ray Train's folder inside --out; its name is what resuming goes by


def run_workers(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    spec: TrainSpec,
    out: Path,
    *,
    keep: int = 2,
) -> Any:
    """Runs `loop` in `spec.workers` processes under Ray Train; returns rank 0's return value.

    The same `out` continues from its last checkpoint. `keep` checkpoints stay on disk. Raises
    RunError when the group failed more than `spec.max_failures` times.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = use_gpu(spec)
    resources = {"CPU": TRAINER_CPUS, **({"GPU": 1.0} if gpu else {})}
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.workers, use_gpu=gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=STORAGE,
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise RunError(_advice(error, out)) from error
    return result.return_value  # type: ignore[attr-defined]


def use_gpu(spec: TrainSpec) -> bool:
    """`device: auto` takes GPUs when the cluster has one for every worker."""
    if spec.device != "auto":
        return spec.device == "cuda"
    return ray.cluster_resources().get("GPU", 0) >= spec.workers


def limit_threads(workers_per_node: int) -> None:
    """Shares a node's cores among the workers on it; more threads only fight each other."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, workers_per_node)))


def _advice(error: Exception, out: Path) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = str(root).strip().splitlines() or [type(root).__name__]
    checkpoints = sorted(p for p in (out / STORAGE).glob("checkpoint_*") if p.is_dir())
    last = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint exists"
    return f"{lines[-1]}\n{last}; the same command with --resume continues from it"
