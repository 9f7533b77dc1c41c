"""The Gaussian experiment: its data, its training and its verdict."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from uml_core.theory.gaussian import (
    GaussianCurves,
    GaussianSetup,
    _Autoencoder,
    draw_world,
    judge,
    run_gaussian,
)

TINY = GaussianSetup(
    width=16, seeds=(0, 1), steps=20, evaluate_every=10, batch=16, samples=400, validation=100
)


def rank(data):
    return int(torch.linalg.matrix_rank(data.double(), rtol=1e-4))


def test_sizes_and_variances_are_the_papers():
    world = draw_world(GaussianSetup(seeds=(0, 1, 2), scale=1.0))
    assert world.x.shape == (3, 10_000, 50)
    assert world.y.shape == (3, 5_000, 50)
    # 10 shared + 5 private of unit strength and 0.09 of noise; training X: 1 + 5 + 9 * 0.05^2
    assert world.val.var(unbiased=False).item() == pytest.approx(15.09, rel=0.1)
    assert world.y.var(unbiased=False).item() == pytest.approx(15.09, rel=0.1)
    assert world.x.var(unbiased=False).item() == pytest.approx(6.11, rel=0.1)


def test_validation_uses_the_projection_of_training_x_and_not_that_of_y():
    clean = draw_world(replace(TINY, noise=0.0, seeds=(5,)))
    x, y, val = clean.x[0], clean.y[0], clean.val[0]
    assert rank(x) == rank(val) == rank(torch.cat([x, val])) == 15
    assert rank(torch.cat([x, y])) == 30


def test_nine_of_ten_shared_directions_are_attenuated_in_training_only():
    clean = draw_world(replace(TINY, noise=0.0, attenuation=0.0, seeds=(5,)))
    assert rank(clean.x[0]) == 6  # one shared and five private directions are left
    assert rank(clean.val[0]) == rank(clean.y[0]) == 15


def test_noise_has_variance_0_09_in_every_direction():
    world = draw_world(GaussianSetup(seeds=(0,)))
    for data in (world.x[0], world.y[0]):
        spectrum = torch.linalg.eigvalsh(torch.cov(data.T))
        assert spectrum[:35].mean().item() == pytest.approx(0.09, rel=0.03)


def test_latents_of_x_and_y_are_not_paired():
    world = draw_world(replace(TINY, samples=20_000, seeds=(0,)))
    x, y = world.x[0, : len(world.y[0])], world.y[0]
    correlation = torch.corrcoef(torch.cat([x, y], 1).T)[:50, 50:]
    assert correlation.abs().max() < 0.06  # 10 000 rows: standard error 0.01


def test_stacked_model_is_the_plain_one_seed_by_seed():
    model = _Autoencoder(TINY)
    inputs = torch.randn(2, 7, 50, generator=torch.Generator().manual_seed(0))
    for modality in "xy":
        names = [f"stem_{modality}", "encode1", "encode2", "decode1", "decode2", f"head_{modality}"]
        layers: list[nn.Module] = []
        for name in names:
            i, o = model.weight[name].shape[1:]
            layer = nn.Linear(i, o)
            layer.weight.data = model.weight[name][1].T.contiguous()
            layer.bias.data = model.bias[name][1, 0]
            layers += [layer] + [nn.ReLU()] * (name in ("encode1", "decode1"))
        expected = nn.Sequential(*layers)(inputs[1])
        torch.testing.assert_close(model(inputs, modality)[1], expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_have_the_default_bound_of_linear_layers():
    model = _Autoencoder(TINY)
    for weight in model.weight.values():
        bound = weight.shape[1] ** -0.5
        assert 0.95 * bound < weight.abs().max().item() <= bound


def test_both_arms_start_equal_and_learn():
    curves = run_gaussian(replace(TINY, steps=100))
    np.testing.assert_array_equal(curves.x_only[:, 0], curves.uml[:, 0])
    assert not np.array_equal(curves.x_only[:, 1], curves.uml[:, 1])
    assert (curves.x_only[:, -1] < 0.8 * curves.x_only[:, 0]).all()
    assert curves.x_only.shape == curves.uml.shape == (2, 11)
    assert (curves.floor < curves.variance).all()


def test_a_seed_does_not_depend_on_the_others():
    both, alone = run_gaussian(TINY), run_gaussian(replace(TINY, seeds=(1,)))
    np.testing.assert_allclose(both.uml[1], alone.uml[0], rtol=1e-4)
    np.testing.assert_allclose(both.x_only[1], alone.x_only[0], rtol=1e-4)


def test_only_uml_uses_y_and_half_of_x():
    setup = replace(TINY, seeds=(0,))
    world = draw_world(setup)
    seen = []
    original = _Autoencoder.forward

    def watch(self, inputs, modality):
        if inputs.shape[1] == setup.batch:
            rows = torch.cdist(inputs[0], world.x[0]).min(1)
            seen.append((modality, rows.indices.max().item()))
        return original(self, inputs, modality)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Autoencoder, "forward", watch)
        run_gaussian(setup)
    steps = setup.steps + 1
    assert [m for m, _ in seen] == ["x"] * steps + ["x", "y"] * steps
    assert max(row for _, row in seen[:steps]) >= 200
    assert max(row for m, row in seen[steps:] if m == "x") < 200


def curves_from(x_only, uml, spread=0.01):
    """Three seeds around the given means, at steps 0, 100, 200 ..."""
    shift = spread * np.array([[-1.0], [0.0], [1.0]])
    x_only, uml = np.asarray(x_only, float), np.asarray(uml, float)
    steps = 100 * np.arange(len(x_only))
    setup = replace(TINY, steps=int(steps[-1]), evaluate_every=100, seeds=(0, 1, 2))
    return GaussianCurves(setup, steps, x_only + shift, uml - shift, np.ones(3), np.zeros(3))


def test_verdict_finds_the_lead_and_the_step_at_which_x_only_catches_up():
    verdict = judge(curves_from([5, 4, 3.0, 2.0, 1.0], [5, 3, 2.5, 2.1, 1.2]))
    assert (verdict.first_ahead, verdict.last_ahead, verdict.caught_up) == (100, 200, 300)
    assert (verdict.largest_gain_step, verdict.largest_gain.mean) == (100, pytest.approx(1.0))
    assert verdict.equal_samples.mean == pytest.approx(1.0 - 2.5)  # X-only at 400, UML at 200
    assert "from step 100 to 200, at best by 25 %" in verdict.sentence
    assert "caught up at step 300" in verdict.sentence


def test_verdict_without_an_end_of_the_lead():
    verdict = judge(curves_from([5, 4, 3], [5, 4, 2]))
    assert (verdict.first_ahead, verdict.last_ahead, verdict.caught_up) == (200, 200, None)
    assert "has not caught up after 200 steps" in verdict.sentence


def test_a_lead_within_the_noise_is_no_lead():
    verdict = judge(curves_from([5, 4, 3.0], [5, 3.9, 2.9], spread=0.5))
    assert verdict.first_ahead is None
    assert verdict.caught_up is None
    assert "never clearly ahead" in verdict.sentence
