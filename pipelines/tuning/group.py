"""A trial with several workers: a Tune function that drives a Ray Train run of its own.

Tune knows nothing of the workers' CPUs and GPUs, so the sweep bounds how many such trials run at
once (`search.room`). Ray Train frees a stopped trial's placement group only while the
dashboard answers and can be found; `runtime.ray_session` sees to both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from pipelines.running.jobs import limit_threads, resources_of, use_gpu
from pipelines.tuning.trial import STATE, Shared, Trial, TrialRun, caches_of, read_state
from uml_core.parallel import DataParallel


def run_in_train(config: dict[str, Any], shared: Shared) -> None:
    """The Tune function: starts the workers and passes on what rank 0 reports.

    A trial that is tried again or resumed has the same name and goes on from its last checkpoint.
    """
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    spec = shared.recipe.train
    gpu = use_gpu(spec)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"trial": config["trial"], "shared": ray.put(shared)},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.most_workers,
            use_gpu=gpu,
            resources_per_worker=resources_of(spec, gpu),
        ),
        run_config=RunConfig(
            name=config["trial"]["key"],
            storage_path=str(Path(shared.out) / "groups"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Train V2's own class
        ),
    )
    trainer.fit()


def worker(config: dict[str, Any]) -> None:
    """`train_loop_per_worker` of one trial."""
    shared: Shared = ray.get(config["shared"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        limit_threads(context.get_local_world_size())
    checkpoint, state = ray.train.get_checkpoint(), None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = read_state(folder)
    run = TrialRun(
        Trial(**config["trial"]),
        shared,
        caches_of(shared),
        device=device,
        world=DataParallel(),
        state=state,
    )

    def report(metrics: dict[str, Any], kept: dict[str, Any] | None) -> None:
        if kept is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="uml-trial-") as folder:
            made = None
            if run.world.rank == 0:
                torch.save(kept, Path(folder) / STATE)
                made = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=made)

    run.run(report)
