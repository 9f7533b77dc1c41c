"""The Gaussian experiment: does unpaired Y help a small autoencoder to reconstruct X?

Source: paper, appendix E.14 and figures 3 and 39. Training data of X shows one of ten shared
latent directions at full strength and the other nine attenuated; Y shows all ten at full strength.
X is then validated without attenuation *through the same projections*. X-only trains on 10 000 X,
UML on 5 000 X and 5 000 Y. The paper leaves width, scale, batch and length open, so all of them are
arguments here, and a verdict is given per width and scale rather than once for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from uml_core.statistics import Gain, paired_gain

EMBED = 128  # width of the per-modality linear stem (paper: 50 -> 128)
LATENT = 10  # width of the bottleneck both modalities share


@dataclass(frozen=True)
class GaussianSetup:
    """Everything that defines one run; latents (unit normal) and noise are drawn per sample."""

    width: int = 128  # hidden width of the shared encoder and decoder
    scale: float = 0.5  # standard deviation of the entries of the projections
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 3000
    evaluate_every: int = 50
    batch: int = 128  # per modality
    lr: float = 1e-3
    samples: int = 10_000  # X-only: all of them X; UML: half X, half Y
    validation: int = 1000
    observed: int = 50
    shared: int = 10
    private: int = 5
    strong: int = 1  # shared directions X sees at full strength in training
    attenuation: float = 0.05
    noise: float = 0.3  # standard deviation; the variance is 0.09


@dataclass(frozen=True)
class GaussianCurves:
    """Validation error of X, mean squared error per observed number.

    ``steps`` (T,), ``x_only`` and ``uml`` (seeds, T), ``variance`` (seeds,) of validation X: the
    error of predicting the mean; ``floor`` (seeds,): the best any 10 linear numbers can do.
    """

    setup: GaussianSetup
    steps: np.ndarray
    x_only: np.ndarray
    uml: np.ndarray
    variance: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True)
class _World:
    """Data of all seeds, stacked: x (S, N, D), y (S, N/2, D), val (S, V, D)."""

    x: Tensor
    y: Tensor
    val: Tensor


def draw_world(setup: GaussianSetup) -> _World:
    """Data for every seed. X and Y have independent latents: nothing is paired."""
    worlds = [_draw_seed(setup, seed) for seed in setup.seeds]
    return _World(*(torch.stack(parts) for parts in zip(*worlds, strict=True)))


def _draw_seed(setup: GaussianSetup, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen)

    shape = (setup.shared + setup.private, setup.observed)
    to_x, to_y = normal(*shape) * setup.scale, normal(*shape) * setup.scale
    strength = torch.ones(shape[0])
    strength[setup.strong : setup.shared] = setup.attenuation

    def observe(count: int, projection: Tensor, strength: Tensor | float = 1.0) -> Tensor:
        clean = (normal(count, shape[0]) * strength) @ projection
        return clean + setup.noise * normal(count, setup.observed)

    x = observe(setup.samples, to_x, strength)
    y = observe(setup.samples // 2, to_y)
    return x, y, observe(setup.validation, to_x)


class _Autoencoder(nn.Module):
    """Stems and heads per modality, one shared encoder and decoder; one copy per seed.

    The seeds are stacked in the first axis of every parameter (weights (S, in, out)), so that
    five small models train in one batched product. They never interact: the loss is their sum.
    """

    def __init__(self, setup: GaussianSetup) -> None:
        super().__init__()
        sizes = {
            "stem_x": (setup.observed, EMBED),
            "stem_y": (setup.observed, EMBED),
            "encode1": (EMBED, setup.width),
            "encode2": (setup.width, LATENT),
            "decode1": (LATENT, setup.width),
            "decode2": (setup.width, EMBED),
            "head_x": (EMBED, setup.observed),
            "head_y": (EMBED, setup.observed),
        }
        gens = [torch.Generator().manual_seed(10_000 + seed) for seed in setup.seeds]

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:  # nn.Linear's default bound
            draws = torch.stack([torch.rand(*shape, generator=g) for g in gens])
            return nn.Parameter((2 * draws - 1) * fan_in**-0.5)

        self.weight = nn.ParameterDict({k: uniform(i, i, o) for k, (i, o) in sizes.items()})
        self.bias = nn.ParameterDict({k: uniform(i, 1, o) for k, (i, o) in sizes.items()})

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[name], inputs, self.weight[name])

    def forward(self, inputs: Tensor, modality: str) -> Tensor:
        """(S, B, D) of modality ``x`` or ``y`` -> its reconstruction (S, B, D)."""
        hidden = torch.relu(self._linear("encode1", self._linear(f"stem_{modality}", inputs)))
        latent = self._linear("encode2", hidden)
        hidden = torch.relu(self._linear("decode1", latent))
        return self._linear(f"head_{modality}", self._linear("decode2", hidden))


def _errors(model: _Autoencoder, inputs: Tensor, modality: str) -> Tensor:
    """Mean squared error per seed, (S,)."""
    return (model(inputs, modality) - inputs).square().mean((1, 2))


def _train(setup: GaussianSetup, world: _World, with_y: bool) -> np.ndarray:
    """Validation error of X at every evaluated step, (S, T); step 0 is the untrained model."""
    model = _Autoencoder(setup)
    optimiser = torch.optim.Adam(model.parameters(), lr=setup.lr, fused=True)
    gens = [torch.Generator().manual_seed(20_000 + seed) for seed in setup.seeds]
    rows = torch.arange(len(setup.seeds))[:, None]
    count_x = setup.samples // 2 if with_y else setup.samples

    def batch(data: Tensor, count: int) -> Tensor:
        pick = [torch.randint(count, (setup.batch,), generator=gen) for gen in gens]
        return data[rows, torch.stack(pick)]

    curve = []
    for step in range(setup.steps + 1):
        if step % setup.evaluate_every == 0:
            with torch.no_grad():
                curve.append(_errors(model, world.val, "x"))
        loss = _errors(model, batch(world.x, count_x), "x").sum()
        if with_y:
            loss = loss + _errors(model, batch(world.y, world.y.shape[1]), "y").sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.stack(curve, dim=1).double().numpy()


def run_gaussian(setup: GaussianSetup) -> GaussianCurves:
    """Train X-only and UML for every seed on one thread and return their curves.

    Both arms take the same number of steps and the same X batch size, and start from the same
    weights. UML's step also holds a batch of Y, so it processes twice the samples per step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are too small to share out
    try:
        world = draw_world(setup)
        x_only, uml = (_train(setup, world, with_y) for with_y in (False, True))
    finally:
        torch.set_num_threads(threads)
    centred = (world.val - world.val.mean(1, keepdim=True)).double()
    spectrum = torch.linalg.eigvalsh(centred.mT @ centred / setup.validation)
    return GaussianCurves(
        setup=setup,
        steps=np.arange(0, setup.steps + 1, setup.evaluate_every),
        x_only=x_only,
        uml=uml,
        variance=spectrum.mean(1).numpy(),
        floor=spectrum[:, :-LATENT].sum(1).numpy() / setup.observed,
    )


@dataclass(frozen=True)
class GaussianVerdict:
    """Where the paper's claim (UML below X-only) holds in one setting.

    ``gains`` step -> paired gain over seeds (X-only error - UML error, squared units of X, 95 % t
    interval). A step counts as ahead where the whole interval lies above 0. ``first_ahead`` and
    ``last_ahead`` are None where there is none. ``caught_up`` is the first step from which X-only's
    mean error is as low as UML's until the end, after UML had been ahead; None if it never is.
    ``equal_samples`` compares UML at half the steps with X-only at all steps: then both have
    processed the same number of samples.
    """

    gains: dict[int, Gain]
    first_ahead: int | None
    last_ahead: int | None
    caught_up: int | None
    largest_gain: Gain
    largest_gain_step: int
    equal_samples: Gain
    sentence: str


def judge(curves: GaussianCurves) -> GaussianVerdict:
    """Where UML is ahead, where X-only catches up, and what is left at equal samples processed."""
    pairs = zip(curves.x_only.T, curves.uml.T, strict=True)
    every = [paired_gain(list(alone), list(joint)) for alone, joint in pairs]
    gains = dict(zip(curves.steps.tolist(), every, strict=True))
    ahead = [step for step, gain in gains.items() if step > 0 and gain.above_zero]
    behind_since = None
    for step in reversed(gains):
        if gains[step].mean > 0:
            break
        behind_since = step
    caught_up = behind_since if ahead and behind_since is not None else None
    best = max(gains, key=lambda step: gains[step].mean)
    half = int(np.searchsorted(curves.steps, curves.setup.steps // 2))
    verdict = GaussianVerdict(
        gains=gains,
        first_ahead=ahead[0] if ahead else None,
        last_ahead=ahead[-1] if ahead else None,
        caught_up=caught_up,
        largest_gain=gains[best],
        largest_gain_step=best,
        equal_samples=paired_gain(list(curves.x_only[:, -1]), list(curves.uml[:, half])),
        sentence="",
    )
    return replace(verdict, sentence=_sentence(curves, verdict))


def _sentence(curves: GaussianCurves, verdict: GaussianVerdict) -> str:
    setup = curves.setup
    where = f"Width {setup.width}, scale {setup.scale:g}"
    if verdict.first_ahead is None:
        return f"{where}: UML is never clearly ahead within {setup.steps} steps."
    column = verdict.largest_gain_step // setup.evaluate_every
    share = verdict.largest_gain.mean / curves.x_only[:, column].mean()
    text = (
        f"{where}: UML is ahead from step {verdict.first_ahead} to {verdict.last_ahead}, at best "
        f"by {100 * share:.0f} % (step {verdict.largest_gain_step})"
    )
    if verdict.caught_up is not None:
        return f"{text}; X-only has caught up at step {verdict.caught_up}."
    return f"{text}; X-only has not caught up after {setup.steps} steps."
