"""How long a run will take: measured here on real batches, carried over to other machines.

A step takes as long as the slowest of what happens side by side: the workers' arithmetic and the
exchange of gradients, decoding, reading. Between steps the workers validate. Arithmetic of CPUs,
decoding, validation and the work of the host at each step are measured in this process; GPUs and
networks are as their makers state them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipelines.running.data import Data, Round, num_classes
from pipelines.running.feed import CACHE_BYTES, augments, load_batches
from pipelines.running.hardware import Gpu
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan
from pipelines.streams.shards import Index
from uml_core.arms import build_fit
from uml_core.cost import batch_flops
from uml_core.evaluation import classifier_accuracy, probe_accuracy
from uml_core.loop import Fit
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.specs import Recipe

SECONDS, FEWEST = 3.0, 5  # of measured steps
VALIDATIONS = 3
EXCHANGES = 3  # all-reduces of a step beside the gradients: terms, losses, a look for notices
CPU_EXCHANGE, GPU_EXCHANGE = 8e-4, 5e-5  # seconds of one small all-reduce: Gloo, NCCL


@dataclass(frozen=True)
class Measured:
    """One worker's part of one step, measured on this machine.

    compute  seconds of forward, backward and update; host: of the same with a sample per modality
    validate seconds of one validation, its samples decoded
    decode   modality -> seconds of one core for one sample; bytes: raw, of one sample
    item     modality -> bytes of one decoded sample; tokens: positions of one sample
    flops    modality -> operations of one whole batch
    """

    compute: float
    host: float
    validate: float
    decode: dict[str, float]
    bytes: dict[str, float]
    item: dict[str, float]
    tokens: dict[str, float]
    flops: dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a run is meant to happen.

    workers     processes that train; gpu: what each has, None: cores of a CPU
    train_cpus  of all nodes that train; data_cpus: of the nodes that read and decode, 0: the same
    gbit        of the network of one node; 0: one machine
    utilisation share of a GPU's peak that training reaches; an assumption, see the answer
    """

    workers: int
    train_cpus: float
    data_cpus: float = 0.0
    gpu: Gpu | None = None
    gbit: float = 0.0
    utilisation: float = 0.3


@dataclass(frozen=True)
class Step:
    """Seconds of an average step: the largest of `parts`, what goes on side by side, and its share
    of a validation."""

    parts: dict[str, float]
    validation: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return max(self.parts.values()) + self.validation

    @property
    def bottleneck(self) -> str:
        """What the step waits for."""
        return max(self.parts, key=lambda name: self.parts[name])


def measure(recipe: Recipe, data: Data, at: Round, workers: int, cpus: float) -> Measured:
    """Measures on real batches, as one of `workers` processes that share `cpus` cores would run.

    Takes some seconds; nothing is written. Sizes that only a GPU run has are counted, not timed.
    """
    size = recipe.train.batch_size
    decode, items, tokens, whole = {}, {}, {}, {}
    for name in recipe.active:
        index, modality = at.train[name], data.modalities[name]
        start = time.perf_counter()
        whole[name] = _batch(index, modality, name, size)
        _batch(index, modality, name, size, first=1)
        decode[name] = (time.perf_counter() - start) / (2 * size)
        x, mask = whole[name].x, whole[name].mask
        items[name] = x.element_size() * x.nelement() / size
        tokens[name] = float(mask.sum()) / size if mask is not None else _positions(modality, x)
    fit = _fit(recipe, data, at)
    flops = batch_flops(fit.learner, whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, int(cpus // workers)))
        compute = _seconds_of_a_step(recipe, data, at, -(-size // workers))
        host = _seconds_of_a_step(recipe, data, at, 1)
        validate = _seconds_of_a_validation(recipe, data, at, fit, workers)
    finally:
        torch.set_num_threads(threads)
    raw = {name: float(at.train[name].sizes.mean()) for name in recipe.active}
    return Measured(compute, host, validate, decode, raw, items, tokens, flops)


def step_of(recipe: Recipe, at: Round, found: Measured, parameters: int, place: Place) -> Step:
    """Seconds of an average step there."""
    schedule, size = recipe.schedule(), recipe.train.batch_size
    taken = schedule.consumed(schedule.total)
    per_step = {name: taken[name] * size / schedule.total for name in recipe.active}
    decoding = sum(
        found.decode[name]
        * decoded_share(at.train[name], name, recipe, found, place)
        * per_step[name]
        for name in recipe.active
    )
    reading = sum(found.bytes[name] * per_step[name] for name in recipe.active)
    parts = {}
    exchange = _exchange(parameters, place)
    if place.gpu is not None:
        flops = sum(found.flops[name] * taken[name] for name in recipe.active) / schedule.total
        peak = place.gpu.peak(recipe.train.precision) * place.utilisation
        arithmetic = flops / place.workers / peak
        parts["arithmetic of the GPUs"] = arithmetic + exchange
        parts["work of the host at each step"] = found.host + exchange
    else:
        parts["arithmetic of the CPUs"] = found.compute + exchange
    cores = place.data_cpus or place.train_cpus
    busy = decoding
    if not place.data_cpus and place.gpu is None:  # the same cores do both
        threads = max(1, int(place.train_cpus // place.workers))
        busy += found.compute * threads * place.workers
    parts["decoding"] = busy / max(cores, 1e-9)
    if place.gbit:
        parts["reading"] = reading * 8 / (place.gbit * 1e9)
    validation = found.validate
    if place.gpu is not None and at.probe is None:  # a probe is fitted on the CPU
        forward = found.flops[recipe.target] / 3 / size * len(at.val)
        validation = forward / place.workers / peak
    return Step(parts, validation / recipe.train.validate_every)


def decoded_share(index: Index, name: str, recipe: Recipe, found: Measured, place: Place) -> float:
    """Of the samples that a run takes, the share that has to be decoded: what fits is kept."""
    schedule = recipe.schedule()
    samples = schedule.consumed(schedule.total)[name] * recipe.train.batch_size
    modality = recipe.modalities[name].build()
    fits = len(index) * found.item[name] <= CACHE_BYTES
    if augments(modality) or not fits or not samples:
        return 1.0
    return min(1.0, len(index) * place.workers / samples)


def _exchange(parameters: int, place: Place) -> float:
    """Seconds in which workers exchange gradients (a ring of all workers) and small sums."""
    if place.workers == 1:
        return 0.0
    small = EXCHANGES * (GPU_EXCHANGE if place.gpu else CPU_EXCHANGE)
    if not place.gbit:
        return small
    share = 2 * (place.workers - 1) / place.workers
    return small + share * parameters * 4 * 8 / (place.gbit * 1e9)


def _batch(index: Index, modality: Modality, name: str, size: int, first: int = 0) -> Batch:
    plan = Plan(len(index), size, 0, name)
    stream = iter_plan(index, plan, modality, first=first, count=1, augment=augments(modality))
    return next(iter(stream)).batch


def _positions(modality: Modality, x: torch.Tensor) -> float:
    return float(x.shape[1]) if x.dim() == 3 else 1.0


def _fit(recipe: Recipe, data: Data, at: Round) -> Fit:
    """A fit on everything that the recipe trains on."""
    arm = "uml" if len(recipe.active) > 1 else "unimodal"
    return build_fit(
        recipe, arm, at.seed, {}, data.modalities, num_classes=num_classes(recipe, data)
    )


def _seconds_of_a_step(recipe: Recipe, data: Data, at: Round, rows: int) -> float:
    """Median seconds of an average update on `rows` samples per modality."""
    fit = _fit(recipe, data, at)
    fit.learner.train()
    batches = {
        name: _batch(at.train[name], data.modalities[name], name, rows) for name in recipe.active
    }
    schedule = recipe.schedule()
    spent: list[float] = []
    began = time.perf_counter()
    step = schedule.lead
    while len(spent) < FEWEST or (time.perf_counter() - began < SECONDS and len(spent) < 400):
        counts = schedule.counts(step % schedule.total)
        given = {n: [(0, batches[n])] * k for n, k in counts.items() if n in batches}
        start = time.perf_counter()
        fit.step(given, step % schedule.total)
        spent.append(time.perf_counter() - start)
        step += 1
    return _mean_of_the_settled(spent)


def _seconds_of_a_validation(
    recipe: Recipe, data: Data, at: Round, fit: Fit, workers: int
) -> float:
    """Median seconds of one of `workers` processes that validate together."""
    target = recipe.target
    modality = data.modalities[target]
    if at.probe is None:
        evaluate = classifier_accuracy(target, load_batches(at.val, modality, (0, workers)))
    else:
        parts = (load_batches(at.probe, modality), load_batches(at.val, modality))
        evaluate = probe_accuracy(target, *parts, recipe.probe.C)
    fit.learner.eval()
    spent = []
    for _ in range(VALIDATIONS):
        start = time.perf_counter()
        with torch.no_grad():
            evaluate(fit)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def _mean_of_the_settled(spent: list[float]) -> float:
    """Mean without the first steps and without what disturbed: steps may differ by the schedule."""
    settled = spent[2:]
    limit = 5 * statistics.median(settled)
    return statistics.fmean(s for s in settled if s <= limit)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def tokens_of_a_step(recipe: Recipe, found: Mapping[str, float]) -> float:
    """Positions that an average step passes through the trunk."""
    schedule, size = recipe.schedule(), recipe.train.batch_size
    taken = schedule.consumed(schedule.total)
    return sum(found[n] * taken[n] * size for n in recipe.active) / schedule.total
