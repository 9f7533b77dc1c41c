"""Run by test_parallel.py as `two_ranks.py FOLDER RANK`: cases in one process and in two (gloo).

The global batch of a step is cut into two slices of equal size whose sequences have unequal
lengths and whose labels are missing unevenly; each slice is padded on its own.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from uml_core.controls import PermutedValues
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, train
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.parallel import DataParallel, OneProcess
from uml_core.schedule import Schedule
from uml_core.specs import ModelSpec, TrainSpec

ROWS, CLASSES, STEPS = 8, 4, 20


def modalities(setting):
    stem = "bag" if setting == "supervised" else "tokens"
    text = KINDS["text"].Options(vocab=16, stem=stem)
    return {
        "x": KINDS["sequence"](KINDS["sequence"].Options(dim=3)),
        "a": KINDS["text"](text),
    }


def samples(name, number):
    """ROWS decoded items and labels of global batch `number`; later rows are longer."""
    g = torch.Generator().manual_seed(1000 * ord(name) + number)
    y = torch.randint(0, CLASSES, (ROWS,), generator=g)
    lengths = [1 + int(torch.randint(0, 2 + row, (), generator=g)) for row in range(ROWS)]
    if name == "x":
        items = [torch.randn(n, 3, generator=g) + k for n, k in zip(lengths, y, strict=True)]
    else:
        items = [
            1 + torch.randint(0, 3, (n,), generator=g) + 3 * k
            for n, k in zip(lengths, y, strict=True)
        ]
    y[: number % 3] = -1
    return items, y


def stream(mods, rank, size, spoil=False):
    at = dict.fromkeys(mods, 0)

    def next_batch(name):
        number = at[name]
        at[name] += 1
        items, y = samples(name, number)
        if spoil and (name, number) == ("x", 7):
            items[-1][0] = math.nan  # the last row: the second rank's
        part = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        x, mask = mods[name].collate(items[part])
        return number, Batch(x, y[part], mask)

    return next_batch


def run(
    setting,
    mode,
    ratio,
    world,
    spoil=False,
    weight=0.7,
    names=("x", "a"),
    permuted=False,
    frozen=False,
    evaluate=lambda fit: 0.0,
    **spec,
):
    mods = {name: m for name, m in modalities(setting).items() if name in names}
    learner = UnpairedLearner(
        mods,
        ModelSpec(width=8, depth=1, heads=2, trunk_frozen=frozen),
        num_classes=CLASSES if setting == "supervised" else None,
    )
    spec = TrainSpec(steps=STEPS, lr=0.02, mode=mode, validate_every=1, gradients_every=3, **spec)
    schedule = Schedule("x", {"a": ratio} if "a" in names else {}, STEPS)
    views = {name: PermutedValues(5, world) for name in names} if permuted else {}
    fit = Fit("fit", learner, spec, names, {"x": 1.0, "a": weight}, schedule, 0, views, world)
    next_batch = stream(mods, world.rank, world.size, spoil)
    norms, update = [], fit.optimizer.step

    def step():
        grads = [p.grad.norm() for p in fit.parameters if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))
        update()

    fit.optimizer.step = step
    train([fit], next_batch, schedule, evaluate=evaluate)
    checksum = sum(float(p.detach().double().abs().sum()) for p in learner.parameters())
    return {
        "losses": fit.history["losses"],
        "gradients": fit.history["gradients"],
        "norms": norms,
        "checksum": checksum,
        "skipped": fit.skipped,
        "chosen": [fit.best_step, fit.best_accuracy, fit.waited, fit.stopped, fit.history["steps"]],
    }


def cases():
    for setting, mode, ratio in itertools.product(
        ("supervised", "self_supervised"), ("joint", "alternate"), (0.5, 2.0)
    ):
        yield f"{setting}-{mode}-{ratio}", (setting, mode, ratio), {}
    yield "weight-0", ("supervised", "joint", 1.0), {"weight": 0.0}
    yield "clip", ("supervised", "joint", 1.0), {"clip": 0.1}
    yield "unimodal-alternate", ("self_supervised", "alternate", 1.0), {"names": ("x",)}
    yield "permuted", ("self_supervised", "joint", 0.5), {"permuted": True}
    yield "frozen", ("self_supervised", "joint", 1.0), {"frozen": True}
    yield "thaw", ("supervised", "joint", 1.0), {"frozen": 7, "clip": 1.0}
    yield "skip", ("self_supervised", "joint", 1.0), {"spoil": True, "on_nan": "skip"}


def an_ulp_apart(fit):
    """A metric that never gains on rank 0, and gains an ulp at every validation on rank 1."""
    seen = len(fit.history["steps"])
    return 50.0 if fit.world.rank == 0 else 50.0 + seen * math.ulp(50.0)


def main(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {}
    for name, args, more in cases():
        results[name] = {"two": run(*args, DataParallel(), **more)}
        if rank == 0:
            results[name]["one"] = run(*args, OneProcess(), **more)
    more = {"evaluate": an_ulp_apart, "patience": 4}
    results["ulp"] = run("supervised", "joint", 1.0, DataParallel(), **more)
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
