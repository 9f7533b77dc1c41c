"""Gradient conflict: closed forms, nothing left behind, the training graph intact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uml_core.analysis.gradients import GradientReport, gradient_report, summarise
from uml_core.errors import UserError


def test_linear_losses_by_hand():
    w, v = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    losses = {
        "image": (w * torch.tensor([3.0, 0.0])).sum() + 4 * v[0],
        "text": (w * torch.tensor([3.0, 5.0])).sum() - 4 * v[0] + 2 * v[2],
        "audio": -2 * v[0],
    }
    found = gradient_report(losses, [w, v])
    assert found.norm == pytest.approx({"image": 5, "text": 54**0.5, "audio": 2})
    assert found.cosine == pytest.approx(
        {
            ("image", "text"): (9 - 16) / (5 * 54**0.5),
            ("image", "audio"): -8 / 10,
            ("text", "audio"): 8 / (2 * 54**0.5),
        }
    )
    # Entries where neither is zero: w[0] agrees, v[0] does not.
    assert found.sign_agreement[("image", "text")] == 0.5
    assert found.sign_agreement[("text", "audio")] == 1.0
    assert found.metrics()["grad_cosine/image/audio"] == pytest.approx(-0.8)
    assert found.metrics()["grad_norm/audio"] == pytest.approx(2)
    assert found.metrics()["grad_sign/text/audio"] == 1.0


def test_a_loss_that_misses_the_shared_weights_counts_as_zero():
    w, own = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    frozen = torch.ones(2)
    found = gradient_report({"a": w.sum(), "b": own.sum()}, [w, frozen])
    assert found.norm["b"] == 0 and found.cosine[("a", "b")] == 0
    assert found.sign_agreement[("a", "b")] == 0


def test_training_gradients_are_untouched_and_losses_may_share_a_graph():
    torch.manual_seed(0)
    shared, x = nn.Linear(4, 4), torch.randn(8, 4)
    out = shared(x).tanh()  # one trunk call for both modalities
    losses = {"a": out[:4].square().mean(), "b": (out[4:] - 1).square().mean()}
    found = gradient_report(losses, list(shared.parameters()))
    assert all(p.grad is None for p in shared.parameters())
    sum(losses.values()).backward()  # the step's own backward still runs
    total = torch.cat([p.grad.flatten() for p in shared.parameters()])
    a, b, cos = found.norm["a"], found.norm["b"], found.cosine[("a", "b")]
    assert float(total.norm() ** 2) == pytest.approx(a**2 + b**2 + 2 * a * b * cos, rel=1e-5)


def test_summary_over_steps():
    def report(cosine: float) -> GradientReport:
        return GradientReport({"a": 1.0, "b": 3.0}, {("a", "b"): cosine}, {("a", "b"): 0.5})

    found = summarise([report(c) for c in (0.5, 0.3, -0.2, 0.6)])
    assert found.cosine[("a", "b")].value == pytest.approx(0.3)
    assert found.cosine[("a", "b")].low < 0.3 < found.cosine[("a", "b")].high
    assert found.conflict[("a", "b")].value == 0.25
    assert found.norm["b"].value == 3.0 and found.steps == 4
    with pytest.raises(UserError, match="no gradient report"):
        summarise([])


def test_nothing_to_differentiate_is_refused():
    with pytest.raises(UserError, match="at least one"):
        gradient_report({"a": torch.ones(())}, [torch.ones(2)])
