"""Suite `heads`: fits of heads over features per minute, ours against a plain loop over fits.

The fits are those of `uml compare caltech` and `caltech-aligned` on generated features of the same
sizes: every arm with its grid, early stopping per fit. Ours train as in a comparison, batched and
shared by one worker per core. The plain loop is what one would write: `nn.Linear`, AdamW, one fit
after the other, features in memory, with as many threads as serve it best. Both take the same
batches from the same initial weights, so they stop after the same steps; what is compared is
fit-steps per second, taken in turn inside one Ray Train worker group.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.benchmarks.rivals import cores
from pipelines.running.jobs import run_workers
from pipelines.running.memory import Order
from pipelines.running.runtime import ray_session
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from uml_core import recipe
from uml_core.arms import UNIMODAL, applicable, build_fit
from uml_core.comparison import Unit, share, units_of
from uml_core.errors import RunError
from uml_core.evaluation import classifier_accuracy
from uml_core.heads.stacked import Rows, train_heads
from uml_core.loop import Fit
from uml_core.modalities.base import Batch
from uml_core.optimiser import learning_rate
from uml_core.specs import Recipe, TrainSpec

CLASSES, SHOTS, TEXTS = 50, 4, 1500
STEPS, SEEDS = 1500, (0, 1, 2)  # the plain loop does the fits of the first seed
DIMS = {"caltech-aligned": (1664, 1664), "caltech": (1280, 384)}  # image, text
SLACK = 0.02  # relative difference in steps up to which two contenders did equal work
# name: (must, aim)
BOUNDS: dict[str, tuple[str, str]] = {"heads_vs_plain": ("≥ 3", "5")}


@dataclass(frozen=True)
class Work:
    """One seed's samples and every fit of it."""

    recipe: Recipe
    rows: Mapping[str, Rows]
    val: Batch
    units: list[Unit]

    def fit(self, unit: Unit) -> Fit:
        """The fit before its first step."""
        return build_fit(
            self.recipe,
            unit.arm,
            unit.seed,
            unit.settings(self.recipe),
            {name: spec.build() for name, spec in self.recipe.modalities.items()},
            num_classes=CLASSES,
            head_batches=lambda name: [Batch(self.rows[name].x, self.rows[name].y)],
        )


def work(name: str, seed: int) -> Work:
    """The fits of a packaged recipe for one seed, over generated features of its sizes."""
    source = Path(str(resources.files("pipelines"))) / "recipes" / f"{name}.yaml"
    fields = [f"modalities.{m}.dim={d}" for m, d in zip(("image", "text"), DIMS[name], strict=True)]
    fields += ["data_root=.", f"model.width={DIMS[name][1]}", f"train.steps={STEPS}"]
    made = recipe.load(source, fields)
    g = torch.Generator().manual_seed(seed)
    rows = {}
    for modality, dim in zip(("image", "text"), DIMS[name], strict=True):
        points = torch.randn(CLASSES, dim, generator=g)
        count = SHOTS * CLASSES if modality == "image" else TEXTS
        x, y = _samples(points, count, g)
        plan = Plan(count, made.train.batch_size, seed, modality)
        order = Order(plan, np.ones(count, bool), Quarantine(None, modality=modality, rows=count))
        rows[modality] = Rows(x, y, order)
        if modality == "image":
            val = Batch(*_samples(points, SHOTS * CLASSES, g))
    return Work(made, rows, val, units_of(made, applicable(made), seed, SHOTS))


def _samples(points: Tensor, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 around the classes' points, as hard to tell as real features."""
    y = torch.arange(count) % CLASSES
    noise = 2.5 * torch.randn(count, points.shape[1], generator=g)
    return F.normalize(points[y] + noise, dim=1), y


# ----------------------------------------------------------------------------- contenders


def ours(works: Sequence[Work], rank: int, size: int) -> int:
    """Trains this worker's share of all fits as a comparison does; the steps they took."""
    cost = {unit.arm: 1.0 if unit.arm in UNIMODAL else 2.0 for unit in works[0].units}
    of = {unit: one for one in works for unit in one.units}
    mine = share(list(of), cost, size)[rank]
    fits = [of[unit].fit(unit) for unit in mine]
    judges = {id(one): classifier_accuracy("image", [one.val]) for one in works}
    train_heads(
        fits,
        [of[unit].rows for unit in mine],
        [judges[id(of[unit])] for unit in mine],
        schedule=works[0].recipe.schedule(),
    )
    return sum(fit.history["steps"][-1] for fit in fits)


def plain(one: Work, units: Sequence[Unit], steps: int | None = None) -> int:
    """Trains fits one after the other in plain PyTorch; the steps they took. steps: at most."""
    return sum(_plain_fit(one, one.fit(unit), steps or STEPS) for unit in units)


def _plain_fit(one: Work, fit: Fit, most: int) -> int:
    """One fit. Of `fit` it takes the initial weights, the settings and the control's labels."""
    spec, weights = fit.spec, fit.learner.state_dict()
    stem = weights.get("stems.image.projection.weight")
    head = _linear(weights["classifier.weight"])
    projection = nn.Identity() if stem is None else _linear(stem)
    optimizer = torch.optim.AdamW(
        [*projection.parameters(), *head.parameters()], lr=spec.lr, weight_decay=spec.weight_decay
    )
    images, texts = one.rows["image"], one.rows["text"]
    alpha = fit.weights.get("text", 0.0)
    view = fit.views.get("text")
    labels = texts.y if view is None else view(Batch(texts.x, texts.y), 0).y
    best, best_step = -1.0, 0
    for step in range(most):
        i = images.order(step, step + 1)[0]
        loss = F.cross_entropy(head(projection(images.x[i])), images.y[i])
        if alpha:
            i = texts.order(step, step + 1)[0]
            loss = loss + alpha * F.cross_entropy(head(texts.x[i]), labels[i])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % spec.validate_every == 0:
            with torch.no_grad():
                right = head(projection(one.val.x)).argmax(1) == one.val.y
            if (accuracy := float(right.float().mean())) > best:
                best, best_step = accuracy, done
            elif done - best_step >= (spec.patience or STEPS) * spec.validate_every:
                return done
    return most


def _linear(weight: Tensor) -> nn.Linear:
    """A layer without bias that starts at (out, in) weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


# -------------------------------------------------------------------------------- measure


def measure(repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fit-steps per second of both, per recipe, and their ratio; the raw repeats beside."""
    scratch = Path(tempfile.mkdtemp(prefix="uml-bench-"))
    try:
        with ray_session(workers=cores(), streams=1):
            say(f"ours and a plain loop in turn, {repeats} times, for {' and '.join(DIMS)}")
            spec = TrainSpec(workers=cores(), device="cpu", max_failures=0)
            found = run_workers(_worker, {"repeats": repeats}, spec, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary(found)


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios of medians out of raw rates. Raises RunError where the work was not equal.

    heads_vs_plain is that of the whole grid: the plain loop's seconds for all fits of both recipes
    over ours. Beside it the ratio of each recipe.
    """
    each, seconds = {}, dict.fromkeys(_TURNS, 0.0)
    for name, raw in found.items():
        a, b = raw["steps_of_first_seed"].values()
        if abs(a - b) > SLACK * max(a, b):
            raise RunError(f"{name}: fits of {a} and of {b} steps are no equal work")
        rate = {who: statistics.median(raw["fit_steps_per_second"][who]) for who in _TURNS}
        for who in _TURNS:
            seconds[who] += a / rate[who]
        per_minute = {who: 60 * rate[who] * raw["fits_of_first_seed"] / a for who in _TURNS}
        each[name] = {
            "heads_vs_plain": rate["ours"] / rate["plain"],
            "fits_per_minute": per_minute,
        }
    return {
        "heads_vs_plain": seconds["plain"] / seconds["ours"],
        "by_recipe": each,
        "repeats": found,
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal, with the recipes below the whole."""
    found = [[key, f"{result[key]:.2f}", *bounds] for key, bounds in BOUNDS.items()]
    for name, one in result["by_recipe"].items():
        rate = one["fits_per_minute"]
        found.append([f"  {name}", f"{one['heads_vs_plain']:.2f}", "", ""])
        found.append([f"  {name}, fits per minute", f"{rate['ours']:.0f}", "", ""])
    return found


_TURNS = ("ours", "plain")


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    found = {}
    for name in DIMS:
        works = [work(name, seed) for seed in SEEDS]
        threads = _best_threads(works[0]) if rank == 0 else 1
        rates: dict[str, list[float]] = {who: [] for who in _TURNS}
        for _ in range(config["repeats"]):
            torch.set_num_threads(1)
            steps, seconds = _together(partial(ours, works, rank, size))
            rates["ours"].append(steps / seconds)
            torch.set_num_threads(threads)
            units = works[0].units if rank == 0 else []
            steps, seconds = _together(partial(plain, works[0], units))
            rates["plain"].append(steps / seconds)
        found[name] = {
            "fit_steps_per_second": rates,
            "plain_threads": threads,
            "fits_of_first_seed": len(works[0].units),
            "steps_of_first_seed": {
                "ours": _together(partial(ours, works[:1], rank, size))[0],
                "plain": steps,
            },
        }
    return found


def _together(do: Callable[[], int]) -> tuple[int, float]:
    """Steps of all workers, and seconds until the last was done."""
    dist.barrier()
    began = time.perf_counter()
    steps = torch.tensor(do())
    dist.all_reduce(steps)
    return int(steps), time.perf_counter() - began


def _best_threads(one: Work) -> int:
    """One thread or one per core, whichever serves the plain loop better."""
    arms = {unit.arm: unit for unit in one.units}
    seconds = {}
    for threads in (1, cores()):
        torch.set_num_threads(threads)
        plain(one, list(arms.values()), steps=5)
        began = time.perf_counter()
        plain(one, list(arms.values()), steps=100)
        seconds[threads] = time.perf_counter() - began
    return min(seconds, key=seconds.__getitem__)
