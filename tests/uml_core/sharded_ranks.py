"""Run by test_sharding.py as `sharded_ranks.py FOLDER RANK`: the cases of two_ranks.py with weights
shared out (FSDP2 over gloo), and a checkpoint that changes hands."""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from two_ranks import CLASSES, modalities, stream

from uml_core import sharding
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, train
from uml_core.parallel import DataParallel, OneProcess, Sharded
from uml_core.schedule import Schedule
from uml_core.specs import ModelSpec, TrainSpec

STEPS, HALF = 12, 6

CASES = {
    "joint": ("supervised", {"mode": "joint"}),
    "alternate": ("supervised", {"mode": "alternate"}),
    "self-supervised": ("self_supervised", {"mode": "joint"}),
    "clip": ("supervised", {"clip": 0.1}),
    "skip": ("self_supervised", {"on_nan": "skip"}),
    "bf16": ("supervised", {"precision": "bf16"}),
}


def make(setting, world, **spec):
    mods = modalities(setting)
    learner = UnpairedLearner(
        mods,
        ModelSpec(width=8, depth=2, heads=2, positions="learned"),
        num_classes=CLASSES if setting == "supervised" else None,
    )
    spec = TrainSpec(steps=STEPS, lr=0.02, validate_every=3, gradients_every=0, **spec)
    schedule = Schedule("x", {"a": 0.5}, STEPS)
    return Fit("fit", learner, spec, ("x", "a"), {}, schedule, world=world), mods, schedule


def run(setting, world, case, start=0, state=None, stop=None, **spec):
    fit, mods, schedule = make(setting, world, **spec)
    if state is not None:
        fit.load_state_dict(state)
    next_batch = stream(mods, world.rank, world.size, spoil=case == "skip")
    for step in range(start):  # the batches that went before
        for name, count in schedule.counts(step).items():
            for _ in range(count):
                next_batch(name)
    kept = {}

    def checkpoint(done):
        if done == stop:
            kept.update(copy.deepcopy(fit.state_dict()))  # as a file would hold it

    fit.spec = spec = TrainSpec(**{**vars(fit.spec), "checkpoint_every": stop or 1000})
    train(
        [fit],
        next_batch,
        schedule,
        evaluate=lambda fit: float(len(fit.history["steps"])),
        start=start,
        checkpoint=checkpoint,
    )
    fit.restore_best()
    weights = sharding.whole(fit.learner.state_dict())
    held = [sharding.local(p).numel() for p in fit.parameters]
    return {
        "losses": fit.history["losses"],
        "skipped": fit.skipped,
        "sharded": sum(isinstance(p, DTensor) for p in fit.parameters) / len(held),
        "held": sum(held) / sum(w.numel() for w in weights.values()),
        "checksum": sum(float(w.double().abs().sum()) for w in weights.values()),
    }, kept


def main(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {}
    for name, (setting, spec) in CASES.items():
        results[name] = {"two": run(setting, Sharded(), name, **spec)[0]}
        if rank == 0:
            results[name]["one"] = run(setting, OneProcess(), name, **spec)[0]
    # A checkpoint of sharded weights goes on in one process, with DDP, and sharded again.
    _, kept = run("supervised", Sharded(), "joint", stop=HALF)
    path = Path(folder) / f"state-{rank}.pt"
    torch.save(kept, path)
    worlds = {"sharded": Sharded(), "ddp": DataParallel()}
    if rank == 0:
        worlds["one"] = OneProcess()
    for name, world in worlds.items():
        state = torch.load(path, weights_only=True)
        results[f"on-{name}"] = run("supervised", world, "joint", start=HALF, state=state)[0]
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
