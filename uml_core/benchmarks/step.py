"""Our training step against the plain script's (`plain.py`), in turn, in one process.

    python -m uml_core.benchmarks.step [REPEATS]

Needs no Ray. On a CPU with one thread; where a CUDA GPU is, the same on it and the model FLOPs
utilisation of a ViT-B-sized trunk in bf16. Prints one JSON object.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from uml_core.benchmarks.plain import Case, Plain, plain_optimizer, plain_step
from uml_core.cost import batch_flops
from uml_core.loop import Fit
from uml_core.modalities.base import Batch
from uml_core.schedule import Schedule
from uml_core.specs import ModelSpec, TrainSpec

# a: the paper's self-supervised model (its 2.2), where arithmetic dominates; b: a small model
# that makes many small calls.
PAPER = ModelSpec(width=40, depth=5, heads=5, ff=2048, dropout=0.1, activation="relu", norm="post")
SMALL = ModelSpec(width=64, depth=3, heads=4, activation="relu")
VIT_B = ModelSpec(width=768, depth=12, heads=12, ff=3072)
CASES = {
    "a": Case("a", PAPER, {"x": 20, "y": 300}, batch=32, length=50),
    "b": Case("b", SMALL, {"x": 16, "y": 16, "z": 16}, batch=64, length=16, classes=10),
}
LARGE = Case("vit_b", VIT_B, {"x": 768, "y": 768}, batch=128, length=196, classes=1000)
STEPS = {"cpu": {"a": 4, "b": 20}, "cuda": {"a": 50, "b": 100}}
SPEC = TrainSpec(steps=10**6, lr=1e-4, lr_schedule="constant", lr_warmup=0, gradients_every=0)
COMPILED = replace(SPEC, compile=True)
NAMES = ("a", "b", "b_compiled", "gpu_a", "gpu_b")
# Dense bf16 operations per second, by the vendor's data sheets.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12}

Step = Callable[[], object]


def measure(repeats: int = 5, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Ratios of medians, ours over plain, with every time beside; None where there is no GPU.

    step_vs_plain   a, b on the CPU; b_compiled: with train.compile=true; gpu_a, gpu_b
    mfu             share of the GPU's peak that a ViT-B-sized trunk reaches in bf16
    repeats         name -> {ours, plain}: seconds per step
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {}
    try:
        for name, case in CASES.items():
            say(f"step {name} on the CPU")
            times[name] = compare(case, torch.device("cpu"), repeats)
            if name == "b" and shutil.which("g++"):  # without it torch.compile has no back end
                say("step b on the CPU, train.compile=true")
                times["b_compiled"] = compare(case, torch.device("cpu"), repeats, COMPILED)
            if torch.cuda.is_available():
                say(f"step {name} on the GPU")
                times[f"gpu_{name}"] = compare(case, torch.device("cuda"), repeats)
    finally:
        torch.set_num_threads(threads)
    ratios = {
        name: statistics.median(of["ours"]) / statistics.median(of["plain"])
        for name, of in times.items()
    }
    return {
        "step_vs_plain": {n: ratios.get(n) for n in NAMES},
        "mfu": utilisation(repeats, say),
        "repeats": times,
    }


def compare(
    case: Case, device: torch.device, repeats: int, spec: TrainSpec = SPEC
) -> dict[str, list[float]]:
    """Seconds per step of ours and of the plain script, taken in turn after a warm-up."""
    ours, plain = steps_of(case, device, spec)
    count = STEPS[device.type][case.name]
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(repeats + 1):
        for name, step in (("ours", ours), ("plain", plain)):
            seconds = _seconds(step, count, device)
            if number:
                found[name].append(seconds)
    return found


def steps_of(case: Case, device: torch.device, spec: TrainSpec = SPEC) -> tuple[Step, Step]:
    """(our step, the plain step) on equal weights and the same batches."""
    fit = fit_of(case, device, spec)
    plain = Plain(case).to(device)
    plain.copy_from(fit.learner)
    optimizer = plain_optimizer(plain, SPEC)
    batches = case.batches(device)
    numbered: Mapping[str, list[tuple[int, Batch]]] = {n: [(0, b)] for n, b in batches.items()}
    return lambda: fit.step(numbered, 0), lambda: plain_step(plain, optimizer, batches)


def fit_of(case: Case, device: torch.device, spec: TrainSpec = SPEC) -> Fit:
    """Our fit of a case: every modality once per step."""
    names = list(case.dims)
    schedule = Schedule(names[0], dict.fromkeys(names[1:], 1.0), spec.steps)
    return Fit(case.name, case.learner().to(device).train(), spec, names, {}, schedule)


def utilisation(
    repeats: int = 5,
    say: Callable[[str], None] = print,
    *,
    case: Case = LARGE,
    spec: TrainSpec | None = None,
) -> float | None:
    """Model FLOPs utilisation of our step in bf16, compiled; None without a GPU of known peak.

    Operations are counted on the model (forward and backward once, no recomputation), so what
    the step does beside is paid for.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK.items() if part in name.replace(" ", "")), None)
    if peak is None:
        say(f"the peak of {name} is not known, so no utilisation can be told")
        return None
    say("ViT-B-sized trunk on the GPU")
    device = torch.device("cuda")
    fit = fit_of(case, device, spec or replace(COMPILED, precision="bf16"))
    batches = case.batches(device)
    flops = sum(batch_flops(fit_of(case, device).learner, batches).values())
    numbered = {name: [(0, batch)] for name, batch in batches.items()}
    times = [_seconds(lambda: fit.step(numbered, 0), 10, device) for _ in range(repeats + 1)]
    return flops / statistics.median(times[1:]) / peak


def _seconds(step: Step, count: int, device: torch.device) -> float:
    """Seconds per step over `count` steps, the device's queue included."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5, lambda text: None)))
