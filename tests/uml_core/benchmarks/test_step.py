from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from uml_core.benchmarks import step
from uml_core.benchmarks.plain import Plain, plain_name, plain_optimizer, plain_step


def without_dropout(case):
    return dataclasses.replace(case, model=dataclasses.replace(case.model, dropout=0.0))


@pytest.mark.parametrize("name", ["a", "b"])
def test_both_sides_do_the_same_arithmetic(name):
    """Equal losses and gradients from equal weights, and equal weights three updates later."""
    case, device = without_dropout(step.CASES[name]), torch.device("cpu")
    fit, plain = step.fit_of(case, device), Plain(case)
    plain.copy_from(fit.learner)
    batches = case.batches(device)
    sums, terms = fit.learner(list(batches.items()))
    losses = torch.stack([plain.loss(name, batch) for name, batch in batches.items()])
    torch.testing.assert_close(sums / terms, losses, rtol=1e-5, atol=1e-6)
    (sums / terms).sum().backward()
    losses.sum().backward()
    reference = Plain(case)
    reference.load_state_dict(plain.state_dict())
    ours = {k: p.grad for k, p in fit.learner.named_parameters()}
    renamed = {plain_name(k): g for k, g in ours.items()}
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(renamed[key], parameter.grad, rtol=1e-4, atol=1e-6)
    optimizer = plain_optimizer(plain, step.SPEC)
    for number in range(3):
        fit.step({n: [(0, b)] for n, b in batches.items()}, number)
        plain_step(plain, optimizer, batches)
    reference.copy_from(fit.learner)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(reference.state_dict()[key], value, rtol=1e-3, atol=2e-5)


def test_the_suite_measures_every_case(monkeypatch):
    monkeypatch.setattr(step, "STEPS", {"cpu": {"a": 1, "b": 1}, "cuda": {"a": 1, "b": 1}})
    monkeypatch.setattr(step.shutil, "which", lambda name: None)  # compiling takes a minute
    found = step.measure(1, lambda text: None)
    assert found["step_vs_plain"]["b_compiled"] is None
    ratios = found["step_vs_plain"]
    assert ratios["a"] > 0 and ratios["b"] > 0
    for name in ("a", "b"):
        times = found["repeats"][name]
        assert ratios[name] == times["ours"][0] / times["plain"][0]
    if not torch.cuda.is_available():
        assert ratios["gpu_a"] is ratios["gpu_b"] is found["mfu"] is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.timeout(600)
def test_a_compiled_step_does_the_same_arithmetic():
    case, device = step.CASES["b"], torch.device("cpu")
    eager, compiled = step.fit_of(case, device), step.fit_of(case, device, step.COMPILED)
    batches = {name: [(0, batch)] for name, batch in case.batches(device).items()}
    for number in range(3):
        eager.step(batches, number)
        compiled.step(batches, number)
    losses = compiled.losses()
    assert eager.losses() == pytest.approx(losses, rel=1e-4)
    weights = compiled.learner.state_dict()
    for key, value in eager.learner.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=2e-5)


def test_steps_learn():
    """The measured step is a real one: losses fall on the batch it repeats."""
    case, device = step.CASES["b"], torch.device("cpu")
    fit = step.fit_of(case, device, dataclasses.replace(step.SPEC, lr=0.01))
    batches = {name: [(0, batch)] for name, batch in case.batches(device).items()}
    fit.step(batches, 0)
    before = fit.losses()
    for number in range(20):
        fit.step(batches, number)
    after = fit.losses()
    assert all(after[name] < before[name] for name in case.dims)
