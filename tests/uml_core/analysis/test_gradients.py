"""Gradients on the shared weights: closed forms, nothing left behind, what training notes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from uml_core.analysis.gradients import GradientReport, gradient_report, sentence, summarise
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, train
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.schedule import Schedule
from uml_core.specs import ModelSpec, TrainSpec


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


AB = ("a", "b")


def run_of(*cosines: float) -> list[GradientReport]:
    reports = enumerate(cosines)
    return [GradientReport({"a": 1.0, "b": 3.0}, {AB: c}, {AB: 0.5}, step) for step, c in reports]


def test_reports_survive_json():
    [report] = run_of(-0.25)
    assert GradientReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.finite() and not run_of(float("nan"))[0].finite()


def test_one_run_is_summarised_over_its_steps():
    found = summarise([run_of(0.5, 0.3, -0.2, 0.6), []])
    assert found.cosine[AB].value == pytest.approx(0.3)
    assert found.cosine[AB].low < 0.3 < found.cosine[AB].high
    assert found.agreement[AB].value == 0.75 and found.norm["b"].value == 3.0
    assert (found.runs, found.reports) == (1, 4)
    with pytest.raises(UserError, match="no gradient report"):
        summarise([[], []])


def test_several_runs_are_summarised_over_their_means():
    found = summarise([run_of(0.5, 0.3), run_of(-0.2, 0.6), run_of(0.1)])
    means = np.array([0.4, 0.2, 0.1])
    assert found.cosines[AB] == pytest.approx(means)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (found.cosine[AB].low, found.cosine[AB].high) == pytest.approx((low, high))
    assert found.agreement[AB].value == pytest.approx((1 + 0.5 + 1) / 3)


def test_a_modality_that_some_steps_leave_out_counts_where_it_is():
    late = GradientReport({"a": 1.0, "c": 2.0}, {("a", "c"): -1.0}, {("a", "c"): 0.0}, 7)
    found = summarise([[*run_of(0.5, 0.3), late], run_of(0.1)])
    assert found.cosine[AB].value == pytest.approx((0.4 + 0.1) / 2)
    assert found.cosine["a", "c"].value == -1.0


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ((0.0, 0.1, -0.1), "the meaning of b makes it pull more with a"),
        ((0.9, 1.0, 0.8), "the meaning of b makes it pull less with a"),
        ((0.9, -0.6, 0.8), "no effect of what b means is seen in it"),
    ],
)
def test_the_sentence_weighs_the_cosine_against_the_control(control, said):
    uml = summarise([run_of(0.5, 0.3), run_of(0.4, 0.5), run_of(0.35, -0.01)])
    text = sentence(uml, AB, summarise([run_of(c) for c in control]))
    assert text.startswith("b pulls the shared weights the same way as a in 83 % of the measured")
    assert "(95 % interval 12 to 100 %, 3 seeds)" in text
    assert text.endswith(f": {said}.")


def test_without_a_control_the_sentence_draws_no_conclusion():
    text = sentence(summarise([run_of(0.5, 0.3)]), AB)
    assert "over 2 steps of one run" in text and "meaning" not in text
    assert "mean cosine 0.400 (95 % interval +0.300 to +0.500)" in text


def test_ranks_add_up_before_anything_is_compared():
    w = torch.zeros(2, requires_grad=True)
    other = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, -5.0])}
    found = gradient_report(
        {"a": 2 * w[0], "b": w[0] + w[1]}, [w], total=lambda g: g + torch.stack([*other.values()])
    )
    assert found.norm == pytest.approx({"a": 13**0.5, "b": 17**0.5})  # (3, 2) and (1, -4)
    assert found.cosine[AB] == pytest.approx((3 - 8) / (13 * 17) ** 0.5)
    assert found.sign_agreement[AB] == 0.5


def test_nothing_to_differentiate_is_refused():
    with pytest.raises(UserError, match="at least one"):
        gradient_report({"a": torch.ones(())}, [torch.ones(2)])


# ---------------------------------------------------------------------- noted in training

MODEL = ModelSpec(width=8, depth=1, heads=2, dropout=0.3)
STEPS = 12


def batch(name: str, number: int) -> Batch:
    g = torch.Generator().manual_seed(1000 * ord(name) + number)
    y = torch.randint(0, 4, (8,), generator=g)
    return Batch(torch.randn(8, 5, generator=g) + y[:, None], y)


def fresh(names, model=MODEL, classes=4) -> UnpairedLearner:
    vector = KINDS["vector"]
    modalities = {name: vector(vector.Options(dim=5)) for name in names}
    return UnpairedLearner(modalities, model, num_classes=classes)


def trained(ratios, every, weights=None, mode="joint", model=MODEL, classes=4) -> Fit:
    names = ["x", *ratios]
    spec = TrainSpec(steps=STEPS, lr=0.01, mode=mode, gradients_every=every)
    schedule = Schedule("x", ratios, STEPS)
    fit = Fit("fit", fresh(names, model, classes), spec, names, weights or {}, schedule)
    at: dict[str, int] = {}

    def next_batch(name):
        at[name] = at.get(name, -1) + 1
        return at[name], batch(name, at[name])

    train([fit], next_batch, schedule, evaluate=lambda fit: 0.0)
    return fit


@pytest.mark.parametrize("mode", ["joint", "alternate"])
def test_training_notes_the_gradients_of_the_weighted_mean_losses(mode):
    """At the weights before the step's update, without dropout, every so many steps."""
    fit = trained({"a": 2.0, "b": 0.5}, 4, {"a": 0.3}, mode)
    assert [report["step"] for report in fit.history["gradients"]] == [0, 4, 8]
    before, flat = fresh("xab").eval(), {}
    for name, weight, count in (("x", 1.0, 1), ("a", 0.3, 2), ("b", 1.0, 1)):
        batches = [batch(name, number) for number in range(count)]
        losses = [nn.functional.cross_entropy(before.logits(name, b), b.y) for b in batches]
        loss = weight * sum(losses) / count
        found = torch.autograd.grad(loss, before.shared_parameters())
        flat[name] = torch.cat([g.flatten() for g in found])
    first = fit.history["gradients"][0]
    assert first["norm"] == pytest.approx({k: float(v.norm()) for k, v in flat.items()}, rel=1e-4)
    assert set(first["cosine"]) == {"x/a", "x/b", "a/b"}
    for pair, cosine in first["cosine"].items():
        a, _, b = pair.partition("/")
        assert cosine == pytest.approx(float(torch.cosine_similarity(flat[a], flat[b], 0)), 1e-4)


def test_training_goes_on_as_if_nobody_had_looked():
    seen, unseen = trained({"a": 1.0}, 1), trained({"a": 1.0}, None)
    assert unseen.history["gradients"] == [] == trained({"a": 1.0}, 0).history["gradients"]
    assert len(seen.history["gradients"]) == STEPS
    weights = unseen.learner.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in seen.learner.state_dict().items())


def test_a_trunk_that_does_not_train_has_no_gradient():
    """Only the classifier is left of the shared weights; without one nothing is."""
    frozen = replace(MODEL, trunk_frozen=True)
    fit = trained({"a": 1.0}, 4, model=frozen)
    assert len(fit.history["gradients"]) == 3
    x, a = batch("x", 0), batch("a", 0)
    before = fresh("xa", frozen).eval()
    losses = [
        nn.functional.cross_entropy(before.logits(n, b), b.y) for n, b in (("x", x), ("a", a))
    ]
    norms = [float(torch.autograd.grad(v, before.classifier.weight)[0].norm()) for v in losses]
    assert list(fit.history["gradients"][0]["norm"].values()) == pytest.approx(norms, rel=1e-4)
    assert trained({"a": 1.0}, 4, model=frozen, classes=None).history["gradients"] == []


def test_one_modality_alone_has_no_gradients_to_compare():
    assert trained({}, 1).history["gradients"] == []
    assert trained({"a": 1.0}, 1, {"a": 0.0}).history["gradients"] == []
