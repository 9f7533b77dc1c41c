"""Starts the Ray Train worker group of a job and turns its failures into advice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from pipelines.files import disk_full
from pipelines.running import checkpoints
from pipelines.running.board import Listener, Reporter, failure_of, new_board
from pipelines.running.checkpoint_home import home_of
from pipelines.running.runtime import TRAINER_CPUS, is_private
from pipelines.streams.access import carried
from pipelines.streams.source import place_data_tasks
from uml_core.errors import RunError, UserError
from uml_core.specs import TrainSpec


class Member(Protocol):
    """One worker of a group."""

    def run(self) -> Any:
        """The work; what rank 0 returns reaches the driver."""
        ...

    def close(self) -> None:
        """Ends what the worker holds open."""
        ...


# ------------------------------------------------------------------------------ the driver


def run_job(
    loop: Callable[[dict[str, Any]], Any],
    job: Any,
    spec: TrainSpec,
    out: Path,
    *,
    say: Callable[[str], None],
    on_progress: Callable[[float], None],
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[Any, int]:
    """Runs the workers of a job that goes on from checkpoints.

    loop         a worker's function; it calls `take_part` with the config that it is given
    job          what the workers need; goes to them once, through the object store
    say          gets the sentences for the person who watches
    on_progress  gets the work done by all workers; on_event what they post (board.py)

    Returns (rank 0's return value, restarts of the group). The same `out` goes on from its newest
    whole checkpoint. Raises RunError when the job cannot be finished, KeyboardInterrupt on Ctrl-C;
    both say what is lost and where the last checkpoint is.
    """
    checkpoints.tidy(out)
    board = new_board()
    data_nodes = {} if is_private() else spec.data_nodes
    config = {"job": ray.put(job), "board": board, "data_nodes": data_nodes}
    value, failure = None, None
    with Listener(board, on_progress, on_event, say=say) as listener:
        try:
            value = run_workers(loop, config, spec, out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(checkpoints.where_it_stands(out)) from None
        except RunError as error:
            failure = str(error)
        failure = failure_of(board) or failure
    if failure is None:
        return value, listener.restarts
    checkpoints.tidy(out)
    raise RunError(f"{failure}\n{checkpoints.where_it_stands(out)}")


def run_workers(
    loop: Callable[[dict[str, Any]], Any], config: dict[str, Any], spec: TrainSpec, out: Path
) -> Any:
    """Runs `loop` in the recipe's workers under Ray Train; returns rank 0's return value.

    An elastic group starts with as many of them as there is room for, goes on with the rest when
    a node is lost and is started anew with more when room comes back.

    Raises RunError when the group failed more than `spec.max_failures` times, and
    KeyboardInterrupt on Ctrl-C, when the workers are gone.
    """
    trainer = _trainer(loop, config, spec, out)
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit().return_value)
        except BaseException as error:
            result.set_exception(error)

    # In the main thread `fit` takes SIGINT over, with a handler that leaves the process with code
    # 0 or 1 in the midst of a call of Ray, before anybody is told what is lost.
    threading.Thread(target=fit, name="trainer.fit", daemon=True).start()
    try:
        return result.result()
    except KeyboardInterrupt:
        _end_workers()
        raise
    except Exception as error:
        raise RunError(_cause(error, out)) from error


def _trainer(
    loop: Callable[[dict[str, Any]], Any], config: dict[str, Any], spec: TrainSpec, out: Path
) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = use_gpu(spec)
    elastic = spec.least_workers < spec.most_workers
    scaling: dict[str, Any] = {  # of Train V2, which type checkers do not see
        "num_workers": (spec.least_workers, spec.most_workers) if elastic else spec.most_workers,
        "elastic_resize_monitor_interval_s": spec.resize_seconds,
        "use_gpu": gpu,
        "resources_per_worker": resources_of(spec, gpu),
    }
    return TorchTrainer(
        carried(loop),
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=checkpoints.new_attempt(out),
            **home_of(out).ray(),
            failure_config=FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=checkpoints.KEEP),
        ),
    )


def _end_workers(seconds: float = 30) -> None:
    """Ends the worker groups of this job; returns when their processes are gone.

    Train's controller always runs on the driver's node, so it can be killed by its process id; its
    workers and their placement group are its own and go with it. Where Ray's state cannot be
    read, they go with the job, a moment later.
    """
    limit = time.monotonic() + seconds
    with contextlib.suppress(ray.exceptions.RayError, RayStateApiException):
        for controller in _alive("TrainController"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(controller.pid, signal.SIGKILL)
        while _alive("RayTrainWorker") and time.monotonic() < limit:
            time.sleep(0.2)


def _alive(kind: str) -> list[Any]:
    """The living actors of a class that belong to this job."""
    context = ray.get_runtime_context()
    filters = [("class_name", "=", kind), ("state", "=", "ALIVE")]
    found = list_actors(context.gcs_address, [*filters, ("job_id", "=", context.get_job_id())])
    return list(found)


def use_gpu(spec: TrainSpec) -> bool:
    """`device: auto` takes GPUs when the cluster has one for every worker that the run needs."""
    if spec.device != "auto":
        return spec.device == "cuda"
    return ray.cluster_resources().get("GPU", 0) >= spec.least_workers


def resources_of(spec: TrainSpec, gpu: bool) -> dict[str, float]:
    """What one worker takes of its node; a resource of the user's own says which nodes train."""
    own = {} if is_private() else {k: v for k, v in spec.worker_resources.items() if k != "GPU"}
    share = {"GPU": spec.worker_resources.get("GPU", 1.0)} if gpu else {}
    return {"CPU": TRAINER_CPUS, **share, **own}


def _cause(error: BaseException, out: Path) -> str:
    """The last line of what is at the root of a failed group."""
    while (inner := _inner(error)) is not None:
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if disk_full(error):
        return f"the disk of {out} is full ({lines[-1]}). Make space"
    return lines[-1]


def _inner(error: BaseException) -> BaseException | None:
    workers = getattr(error, "worker_failures", None) or {}
    found = getattr(error, "controller_failure", None) or getattr(
        error, "health_check_failure", None
    )
    return found or next(iter(workers.values()), None) or error.__cause__


# ------------------------------------------------------------------------------ the worker


def take_part(config: dict[str, Any], make: Callable[[Any, Reporter], Member]) -> Any:
    """The life of one worker: `make(job, reporter).run()`.

    An error that every start of the group would meet again ends the job: the driver learns of it
    through the board, and so do the workers of the start that Ray makes all the same.
    """
    context = ray.train.get_context()
    reporter = Reporter(config["board"], context.get_world_rank())
    if failure_of(reporter.board) is not None:
        return None
    member: Member | None = None
    try:
        place_data_tasks(config["data_nodes"])
        member = make(ray.get(config["job"]), reporter)
        return member.run()
    except Exception as error:
        known = isinstance(error, UserError | RunError)
        if not known and not disk_full(error):
            raise
        why = str(error) if known else f"the disk is full ({error}). Make space"
        ray.get(reporter.board.fail.remote(why))
        if context.get_world_size() == 1:
            return None
        raise  # another worker may wait for this one: only the end of the group frees it
    finally:
        if member is not None:
            member.close()


def limit_threads(workers_per_node: int) -> None:
    """Shares a node's cores among the workers on it; more threads only fight each other."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, workers_per_node)))
