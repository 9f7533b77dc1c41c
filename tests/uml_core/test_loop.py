import dataclasses
import io
import itertools
import math
import shutil

import pytest
import torch

from uml_core.controls import PermutedLabels
from uml_core.errors import RunError, UserError
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, accuracy, train
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.optimiser import learning_rate
from uml_core.schedule import Schedule, Warmup
from uml_core.specs import ModelSpec, TrainSpec

CLASSES = 4
SPEC = TrainSpec(steps=12, batch_size=8, lr=0.01, lr_warmup=2, validate_every=3, checkpoint_every=5)


def make_fit(ratios=None, weights=None, model=None, warmup=None, views=None, seed=0, **spec):
    ratios = {"a": 1.0} if ratios is None else ratios
    spec = dataclasses.replace(SPEC, **spec)
    names = ["x", *ratios]
    kind = KINDS["vector"]
    learner = UnpairedLearner(
        {name: kind(kind.Options(dim=5)) for name in names},
        model or ModelSpec(width=8, depth=1, heads=2),
        num_classes=CLASSES,
        seed=seed,
    )
    weights = {"x": 1.0, **dict.fromkeys(ratios, 1.0), **(weights or {})}
    schedule = Schedule("x", ratios, spec.steps, warmup)
    return Fit(f"fit-{seed}", learner, spec, names, weights, schedule, seed, views or {})


def sample(name, number, rows=8):
    """Batch `number` of a modality: a pure function, endless."""
    g = torch.Generator().manual_seed(1000 * ord(name) + number)
    y = torch.randint(0, CLASSES, (rows,), generator=g)
    return Batch(torch.randn(rows, 5, generator=g) + y[:, None], y, keys=[f"{name}{number}"] * rows)


class Stream:
    """Numbered batches per modality, with a cursor that a resumed run sets."""

    def __init__(self, make=sample, **start):
        self.make, self.at = make, start

    def __call__(self, name):
        number = self.at.get(name, 0)
        self.at[name] = number + 1
        return number, self.make(name, number)


def run(fits, make=sample, evaluate=lambda fit: 0.0, **more):
    fits = fits if isinstance(fits, list) else [fits]
    train(fits, Stream(make), fits[0].schedule, evaluate=evaluate, **more)
    return fits[0]


def weights_of(fit):
    return {k: v.clone() for k, v in fit.learner.state_dict().items()}


def same(a, b):
    return all(torch.equal(b[k], v) for k, v in a.items())


# ------------------------------------------------------------------------------ gradients


def summed_gradients(fit):
    """Runs the whole schedule at fixed weights; the sum of what the optimiser was given."""
    total: dict[str, torch.Tensor] = {}

    def collect():
        for name, p in fit.learner.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad.clone()

    fit.optimizer.step = collect
    run(fit)
    return total


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("mode", ["joint", "alternate"])
def test_gradient_per_target_batch_is_the_weighted_sum_of_the_mean_losses(mode, ratio):
    fit = make_fit({"a": ratio}, {"x": 2.0, "a": 0.5}, mode=mode)
    got = summed_gradients(fit)
    fit.learner.zero_grad()
    loss, at = torch.zeros(()), 0
    for step in range(12):
        counts = fit.schedule.counts(step)
        parts = [("x", sample("x", step), 2.0)]
        for _ in range(counts.get("a", 0)):
            parts.append(("a", sample("a", at), 0.5 / counts["a"]))
            at += 1
        for name, batch, weight in parts:
            logits = fit.learner.logits(name, batch)
            loss = loss + weight * torch.nn.functional.cross_entropy(logits, batch.y)
    loss.backward()
    assert at == 12 * ratio
    for name, p in fit.learner.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert name not in got


@pytest.mark.parametrize(("mode", "updates"), [("joint", 12), ("alternate", 12 + 30)])
def test_updates_per_run(mode, updates):
    fit = make_fit({"a": 2.5}, mode=mode)
    count = []
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (count.append(1), step())
    run(fit)
    assert len(count) == updates


def test_a_weight_of_zero_is_the_baseline():
    fit, alone = make_fit(weights={"a": 0.0}), make_fit({})
    run(fit)
    run(alone)
    assert same(weights_of(alone), weights_of(fit))
    assert fit.history["losses"][0].keys() == {"x"}


def test_unlabelled_samples_are_no_terms():
    def half(name, number):
        batch = sample(name, number)
        return dataclasses.replace(batch, y=batch.y.where(torch.arange(8) < 4, -1))

    def first_half(name, number):
        batch = sample(name, number)
        return Batch(batch.x[:4], batch.y[:4])

    one, other = run(make_fit(), half), run(make_fit(), first_half)
    for a, b in zip(one.history["losses"], other.history["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_clipping_bounds_the_gradient_and_nothing_else():
    norms = []

    def watched(**spec):
        fit = make_fit(**spec)
        step = fit.optimizer.step

        def look():
            grads = [p.grad.norm() for p in fit.parameters if p.grad is not None]
            norms.append(float(torch.stack(grads).norm()))
            step()

        fit.optimizer.step = look
        return run(fit)

    watched(clip=0.1)
    assert max(norms) == pytest.approx(0.1, rel=1e-3)
    plain, loose = watched(), watched(clip=1e6)
    assert same(weights_of(plain), weights_of(loose))


def test_training_lowers_the_loss_and_the_views_are_applied():
    fit = run(make_fit(steps=60, lr=0.03, validate_every=20))
    losses = [at["a"] for at in fit.history["losses"]]
    assert losses[-1] < 0.6 * losses[0]
    derange = {"a": PermutedLabels(CLASSES, 0)}
    permuted = make_fit(steps=60, lr=0.03, validate_every=20, views=derange)
    run(permuted)
    batch = sample("a", 999, 200)
    right, count = accuracy(permuted.learner, "a", [batch])
    seen_right, _ = accuracy(permuted.learner, "a", [derange["a"](batch, 0)])
    assert right / count < 0.25 < 0.5 < seen_right / count


# ------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("warmup", [None, Warmup("x", 4), Warmup("a", 4)])
def test_the_optimiser_gets_the_rate_of_the_step(warmup):
    fit, rates = make_fit(warmup=warmup), []
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (rates.append(fit.optimizer.param_groups[0]["lr"]), step())
    run(fit)
    lead = fit.schedule.lead
    assert rates == [learning_rate(fit.spec, t, 12, lead) for t in range(lead + 12)]


def test_a_warm_up_on_an_auxiliary_changes_nothing_for_the_target_alone():
    """Rates, thaw, dropout and weights are functions of the target batches."""

    def trained(warmup):
        model = ModelSpec(width=8, depth=1, heads=2, dropout=0.3, trunk_frozen=5)
        fit, rates = make_fit({}, model=model, warmup=warmup), []
        step = fit.optimizer.step
        fit.optimizer.step = lambda: (rates.append(fit.optimizer.param_groups[0]["lr"]), step())
        return run(fit), rates

    (plain, rates), (after, others) = trained(None), trained(Warmup("a", 9))
    assert len(rates) == 12 and sum(rates) == sum(others) and max(others) == 0.01
    assert same(weights_of(plain), weights_of(after))


# ----------------------------------------------------------------- validation and stopping


def scripted(values):
    values = iter(values)
    return lambda fit: next(values)


def test_validation_is_in_evaluation_mode_without_gradients_and_training_goes_on_in_train_mode():
    """The reference trains in evaluation mode after its first validation (fault 7)."""
    fit, seen = make_fit(), []
    inner = fit.module

    def spy(parts):
        seen.append((fit.learner.training, all(m.training for m in fit.learner.modules())))
        return inner(parts)

    def evaluate(fit):
        assert not any(m.training for m in fit.learner.modules())
        assert not torch.is_grad_enabled()
        return 1.0

    fit.module = spy
    fit.learner.eval()
    run(fit, evaluate=evaluate)
    assert seen == [(True, True)] * 12 and fit.learner.training


def test_validation_steps_and_losses_since_the_last_one():
    fit = run(make_fit({"a": 0.5}, steps=7, lr=0.0), evaluate=scripted([3.0, 5.0, 4.0]))
    assert fit.history["steps"] == [3, 6, 7] and fit.history["val_accuracy"] == [3.0, 5.0, 4.0]
    assert (fit.best_step, fit.best_accuracy) == (6, 5.0)
    cross_entropy = torch.nn.functional.cross_entropy

    def loss(name, numbers):
        means = []
        for n in numbers:
            batch = sample(name, n)
            with torch.no_grad():
                means.append(float(cross_entropy(fit.learner.logits(name, batch), batch.y)))
        return sum(means) / len(means)

    expected = [
        {"x": loss("x", [0, 1, 2]), "a": loss("a", [0, 1])},
        {"x": loss("x", [3, 4, 5]), "a": loss("a", [2])},
        {"x": loss("x", [6]), "a": loss("a", [3])},
    ]
    assert fit.history["losses"] == [pytest.approx(at, rel=1e-5) for at in expected]


def test_warmup_on_an_auxiliary_counts_validations_in_target_batches():
    fit = run(make_fit(warmup=Warmup("a", 4)))
    assert fit.history["steps"] == [7, 10, 13, 16]


def test_the_best_weights_come_back_and_ties_keep_the_earliest():
    taken = []

    def evaluate(fit):
        taken.append(weights_of(fit))
        return [1.0, 7.0, 7.0, 2.0][len(taken) - 1]

    fit = run(make_fit(), evaluate=evaluate)
    assert not same(weights_of(fit), taken[1])
    fit.restore_best()
    assert same(taken[1], weights_of(fit)) and fit.best_step == 6


def test_restoring_without_a_validation_is_an_error():
    with pytest.raises(RunError, match="no validation"):
        make_fit().restore_best()


def test_patience_stops_a_fit_and_the_last_state_is_checkpointed():
    saved, ticks = [], []
    fit = make_fit(patience=2, steps=30)
    values = [5.0, 6.0, 6.0, 6.0, 9.0]
    run(fit, evaluate=scripted(values), checkpoint=saved.append, progress=ticks.append)
    assert fit.history["val_accuracy"] == values[:4] and fit.stopped and fit.waited == 2
    assert ticks == list(range(1, 13)) and saved == [5, 10, 12]


def test_a_stopped_fit_leaves_the_others_running():
    stopping, going = make_fit(patience=1), make_fit(seed=1)
    run([stopping, going], evaluate=lambda fit: 1.0)
    assert stopping.history["steps"] == [3, 6] and going.history["steps"] == [3, 6, 9, 12]
    alone = run(make_fit(seed=1), evaluate=lambda fit: 1.0)
    assert same(weights_of(alone), weights_of(going))


def test_a_run_that_resumes_after_its_early_stop_takes_no_batch():
    fit = make_fit(patience=1)
    run(fit)
    stream = Stream()
    train([fit], stream, fit.schedule, evaluate=lambda fit: 1.0, start=6)
    assert stream.at == {}


def test_checkpoints_are_due_every_so_often_and_at_the_end():
    saved = []
    run(make_fit(), checkpoint=saved.append)
    assert saved == [5, 10, 12]


# -------------------------------------------------------------------------- non-finite


def spoilt(name, number):
    batch = sample(name, number)
    if (name, number) == ("a", 4):
        batch.x[0] = math.nan
    return batch


@pytest.mark.parametrize("mode", ["joint", "alternate"])
def test_a_non_finite_loss_stops_the_run_with_finite_weights(mode):
    fit, saved = make_fit(mode=mode), []
    with pytest.raises(RunError, match=r"step 4: lower train\.lr"):
        run(fit, spoilt, checkpoint=saved.append)
    assert fit.diverged_at == 4 and fit.stopped and saved == []
    assert all(v.isfinite().all() for v in weights_of(fit).values())


def test_after_a_non_finite_loss_no_batch_changes_the_weights():
    fit, seen = make_fit({"a": 2.0}, mode="alternate"), []
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (step(), seen.append(weights_of(fit)))
    with pytest.raises(RunError, match="step 2"):
        run(fit, spoilt)  # batches 4 and 5 of a belong to step 2
    assert [same(a, b) for a, b in itertools.pairwise(seen)] == [False] * 6 + [True] * 2


def test_one_diverged_fit_leaves_the_others_running():
    bad, good = make_fit(), make_fit({}, seed=1)
    run([bad, good], spoilt)
    assert bad.diverged_at == 4 and bad.history["steps"] == [3]
    assert good.history["steps"] == [3, 6, 9, 12]


def test_skipping_leaves_out_the_update_and_its_losses():
    fit = make_fit(on_nan="skip")
    run(fit, spoilt)
    assert fit.skipped == 1 and fit.diverged_at is None
    assert all(v.isfinite().all() for v in weights_of(fit).values())
    assert all(math.isfinite(v) for at in fit.history["losses"] for v in at.values())


def test_skipping_sees_gradients_that_are_not_finite_though_the_loss_is():
    fit = make_fit(on_nan="skip")
    calls = []

    def spoil(grad):
        calls.append(1)
        return grad * math.inf if len(calls) == 5 else grad

    fit.learner.classifier.weight.register_hook(spoil)
    run(fit)
    assert fit.skipped == 1
    assert all(v.isfinite().all() for v in weights_of(fit).values())


# ------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("mode", ["joint", "alternate"])
@pytest.mark.parametrize("cut", [4, 6])
@pytest.mark.parametrize(("warmup", "frozen"), [(None, False), (Warmup("a", 3), 5), (None, True)])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(mode, cut, warmup, frozen):
    def build():
        model = ModelSpec(
            width=8, depth=1, heads=2, dropout=0.3, logit_scale="learned", trunk_frozen=frozen
        )
        spec = {"mode": mode, "clip": 1.0, "gradients_every": 3}
        return make_fit({"a": 0.5, "b": 2.0}, model=model, warmup=warmup, **spec)

    def evaluate(fit):
        return 100.0 * accuracy(fit.learner, "x", [sample("x", 77, 64)])[0] / 64

    whole, stored = build(), io.BytesIO()

    def checkpoint(done):
        if done == cut:
            torch.save(whole.state_dict(), stored)

    whole.spec = dataclasses.replace(whole.spec, checkpoint_every=1)
    run(whole, evaluate=evaluate, checkpoint=checkpoint)

    torch.manual_seed(999)
    resumed = build()
    stored.seek(0)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    stream = Stream(**resumed.schedule.consumed(cut))
    train([resumed], stream, resumed.schedule, evaluate=evaluate, start=cut)
    assert same(weights_of(whole), weights_of(resumed))
    assert whole.history == resumed.history
    assert (whole.best_step, whole.best_accuracy) == (resumed.best_step, resumed.best_accuracy)
    assert same(whole.best_weights, resumed.best_weights)
    assert stream.at == whole.schedule.consumed(whole.schedule.total)


def test_dropout_differs_between_steps_seeds_and_ranks():
    model = ModelSpec(width=8, depth=1, heads=2, dropout=0.5)

    def losses(seed=0, rank=0):
        fit = make_fit({}, model=model, lr=0.0, validate_every=1)
        fit.seed, fit.world.rank = seed, rank
        return [at["x"] for at in run(fit, lambda name, _: sample(name, 0)).history["losses"]]

    first = losses()
    assert len(set(first)) == 12 and losses() == first
    assert losses(seed=1)[0] != first[0] and losses(rank=1)[0] != first[0]


# -------------------------------------------------------------------------------- others


def test_accuracy_counts_labelled_samples():
    fit = make_fit()
    batch = sample("x", 0, 10)
    predicted = fit.learner.logits("x", batch).argmax(1)
    y = predicted.clone()
    y[0], y[1:4] = (y[0] + 1) % CLASSES, -1
    parts = [Batch(batch.x[:5], y[:5]), Batch(batch.x[5:], y[5:])]
    assert accuracy(fit.learner, "x", parts) == (6, 7)
    assert accuracy(fit.learner, "x", []) == (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_trunk_computes_the_same():
    eager = run(make_fit(steps=3, validate_every=1))
    compiled = run(make_fit(steps=3, validate_every=1, compile=True))
    for a, b in zip(eager.history["losses"], compiled.history["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert compiled.learner.state_dict().keys() == eager.learner.state_dict().keys()


def test_bf16_stays_close_to_fp32():
    full, half = run(make_fit()), run(make_fit(precision="bf16"))
    assert next(iter(half.learner.parameters())).dtype == torch.float32
    for a, b in zip(full.history["losses"], half.history["losses"], strict=True):
        assert a == pytest.approx(b, rel=0.05) and a != b


def test_a_checkpoint_of_another_version_is_refused_by_name():
    """One group of parameters, as it was before decay left the norms out."""
    state = make_fit().state_dict()
    groups = state["optimizer"]["param_groups"]
    one = {**groups[0], "params": [n for group in groups for n in group["params"]]}
    state["optimizer"] = {**state["optimizer"], "param_groups": [one]}
    with pytest.raises(UserError, match="another version of the project"):
        make_fit().load_state_dict(state)
