"""No update mixes devices or waits for the GPU, tried on fake tensors of a GPU that is not there.

Fake tensors have a device and a shape but no values: a mixture of devices and every look at a
value raise. Copies are watched: from a GPU none may go, to it only such as come from pinned memory.
Gradients are stood in for, because the autograd engine asks the driver for streams.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from uml_core.adaptive import shared_gradient
from uml_core.arms import build_fit
from uml_core.controls import PermutedValues
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit
from uml_core.modalities.base import Batch, sent
from uml_core.modalities.common import pad_stack
from uml_core.parallel import OneProcess
from uml_core.recipe import from_dict

ROWS, CLASSES = 4, 3
KINDS = {
    "image": {"kind": "image", "size": 16, "patch": 8},
    "text": {"kind": "text", "vocab": 16},
    "audio": {"kind": "audio", "mels": 8},
    "sequence": {"kind": "sequence", "dim": 3},
    "vector": {"kind": "vector", "dim": 6},
}
STEMS = {
    "supervised": {
        "image": ("conv", "patches", "vit"),
        "text": ("bag", "tokens"),
        "audio": ("conv", "patches"),
        "sequence": ("conv1d", "frames"),
        "vector": ("linear",),
    },
    "self_supervised": {
        "image": ("patches",),
        "text": ("tokens",),
        "audio": ("patches",),
        "sequence": ("frames",),
        "vector": ("linear",),
    },
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "arm": ("unimodal", "unimodal_direct", "uml", "uml_init", "uml_permuted"),
    "mode": ("joint", "alternate"),
    "precision": ("fp32", "tf32", "bf16"),
    "clip": (None, 1.0),
    "on_nan": ("stop", "skip"),
    "ratio": (1.0, 2.0),
    "dropout": (0.0, 0.1),
    "norm": ("pre", "post"),
    "activation": ("gelu", "relu"),
    "positions": ("off", "learned", "sinusoidal"),
    "trunk": ("transformer", "none"),
    "trunk_frozen": (False, True, 1),
    "logit_scale": ("fixed", "learned"),
    "label_smoothing": (0.0, 0.1),
    "padded": (True, False),
}
UNLABELLED = {  # what the self-supervised setting knows
    "arm": ("unimodal", "uml", "uml_permuted"),
    "trunk": ("transformer",),
    "logit_scale": ("fixed",),
    "label_smoothing": (0.0,),
}
TRAIN = ("mode", "precision", "clip", "on_nan", "label_smoothing")


class Watched(TorchDispatchMode):
    """Notes copies between devices that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            ways = (source.device.type, out.device.type)
            pinned = getattr(source, "is_pinned_here", False)
            if ways == ("cuda", "cpu") or (ways == ("cpu", "cuda") and not pinned):
                self.waits.append(f"{func}: {ways[0]} to {ways[1]}, {tuple(source.shape)}")
        return out


@pytest.fixture
def gpu(monkeypatch):
    """FakeTensorMode, with what needs a driver stood in for."""

    def pinned(value: Tensor) -> Tensor:
        value = value.clone()
        value.is_pinned_here = True  # type: ignore[attr-defined]
        return value

    def moved(module: nn.Module, device: str) -> nn.Module:
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    part._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
            for name, b in part._buffers.items():
                part._buffers[name] = None if b is None else b.to(device)
        return module

    def gradients(loss: Tensor, of: Any, **_: Any) -> list[Tensor]:
        assert loss.requires_grad
        return [torch.zeros_like(p) for p in of]

    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(UnpairedLearner, "init_head_from", lambda *_: [])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def pairwise(factors: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Settings in which every two values of two factors meet: greedy, by seed."""
    rng = np.random.default_rng(0)
    left = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(factors, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    found = []
    while left:
        drawn = [{f: int(rng.integers(len(v))) for f, v in factors.items()} for _ in range(50)]
        first = min(left)
        best, covered = {}, set()
        for one in drawn:
            one |= dict(first)
            meets = set(itertools.combinations(one.items(), 2)) & left
            if len(meets) > len(covered):
                best, covered = one, meets
        left -= covered
        found.append({f: factors[f][i] for f, i in best.items()})
    return found


def recipe_of(setting: str, target: str, other: str, case: dict[str, Any]) -> Any:
    """The recipe of a case; None where such a one is refused."""
    direct = case["arm"] == "unimodal_direct"
    raw: dict[str, Any] = {
        "name": "case",
        "setting": setting,
        "target": "x",
        "data_root": ".",
        "modalities": {
            "x": {**KINDS[target], "train": "x.tar", "test": "x.tar", "stem": case["stem"]},
            "a": {**KINDS[other], "train": "a.tar", "ratio": case["ratio"], "stem": case["other"]},
        },
        "model": {
            "width": 16,
            "depth": 1,
            "heads": 2,
            **{k: case[k] for k in ("dropout", "norm", "activation", "positions")},
            **{k: case[k] for k in ("trunk", "trunk_frozen", "logit_scale")},
            "head_init": "class_means:a" if case["arm"] == "uml_init" else "random",
        },
        "train": {"steps": 4, "gradients_every": 0, **{k: case[k] for k in TRAIN}},
    }
    if direct:
        raw["model"]["trunk"] = "none"
    try:
        return from_dict(raw)
    except UserError:
        return None


def batch(modality: Any, kind: str, padded: bool) -> Batch:
    """A collated batch of items, of unequal lengths where `padded`."""
    lengths = [5 + 4 * k * padded for k in range(ROWS)]
    items = {
        "image": lambda n: torch.zeros(3, 16, 16, dtype=torch.uint8),
        "text": lambda n: torch.ones(n, dtype=torch.int64),
        "audio": lambda n: torch.zeros(8, 8 * n),
        "sequence": lambda n: torch.zeros(n, 3),
        "vector": lambda n: torch.zeros(6),
    }
    x, mask = modality.collate([items[kind](n) for n in lengths])
    return Batch(x, torch.tensor([0, 1, 2, -1]), mask)


def try_one(gpu: FakeTensorMode, recipe: Any, kinds: dict[str, str], case: dict[str, Any]) -> None:
    """Two updates, validation, gradients of an arm; the second update is watched."""
    mods = case["mods"]
    numbers = CLASSES if recipe.setting == "supervised" else None
    fit: Fit = build_fit(
        recipe,
        case["arm"],
        0,
        {},
        mods,
        num_classes=numbers,
        head_batches=lambda name: [],
        device="cuda",
    )
    parts = {name: case["batches"][name, kind] for name, kind in kinds.items()}

    def backward(loss: Tensor, **_: Any) -> None:
        assert loss.device.type == "cuda" and loss.requires_grad
        for p in fit.parameters:
            p.grad = torch.zeros_like(p) if p.requires_grad else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        for step in (0, 1):
            with Watched() as watch:
                batches = {
                    name: [(n, part.to("cuda")) for n in range(int(case["ratio"]))]
                    for name, part in parts.items()
                }
                fit.step(batches, step)
        assert not watch.waits, watch.waits
        assert len(fit._told) > 1
    fit.learner.eval()
    sample = parts["x"].to("cuda")
    assert fit.learner.embed("x", sample).device.type == "cuda"
    shared_gradient(fit, "x", [(0, parts["x"])])
    fit.learner.train()
    measured = fit._mine({name: [(0, part.to("cuda"))] for name, part in parts.items()})
    if len(measured) > 1 and any(p.requires_grad for p in fit.learner.shared_parameters()):
        with pytest.raises(DataDependentOutputException):  # its one look at the numbers
            fit.note_gradients(measured, 0)


@pytest.mark.parametrize("setting", ["supervised", "self_supervised"])
def test_updates_of_every_arm_stay_on_the_gpu(request, setting):
    pairs = list(itertools.product(KINDS, KINDS))
    cases = pairwise(FACTORS if setting == "supervised" else FACTORS | UNLABELLED)
    if setting == "supervised":
        cases += [c | {"arm": arm} for c in cases[:4] for arm in FACTORS["arm"]]
    tried, arms = 0, set()
    todo = []
    for number in range(max(len(cases), len(pairs))):
        case, (target, other) = dict(cases[number % len(cases)]), pairs[number % len(pairs)]
        stems = STEMS[setting]
        case["stem"] = stems[target][number % len(stems[target])]
        case["other"] = stems[other][(number // 2) % len(stems[other])]
        if case["arm"] == "unimodal_direct":
            target, case["stem"] = "vector", "linear"
        recipe = recipe_of(setting, target, other, case)
        if recipe is None:
            continue
        kinds = {"x": target, "a": other}
        case["mods"] = {name: spec.build() for name, spec in recipe.modalities.items()}
        case["batches"] = {
            (name, kind): batch(case["mods"][name], kind, case["padded"])
            for name, kind in kinds.items()
        }
        todo.append((recipe, kinds, case))
    gpu = request.getfixturevalue("gpu")
    for recipe, kinds, case in todo:
        case["batches"] = {
            key: Batch(
                gpu.from_tensor(b.x),
                gpu.from_tensor(b.y),
                None if b.mask is None else gpu.from_tensor(b.mask),
            )
            for key, b in case["batches"].items()
        }
        try:
            try_one(gpu, recipe, kinds, case)
        except Exception as error:
            error.add_note(
                f"{setting}, {kinds}, { ({k: case[k] for k in (*FACTORS, 'stem', 'other')}) }"
            )
            raise
        tried += 1
        arms.add(case["arm"])
    wanted = {"unimodal", "uml", "uml_permuted"}
    if setting == "supervised":
        wanted |= {"unimodal_direct", "uml_init"}
    assert tried >= 15 and arms >= wanted, (tried, arms)


def test_the_permuted_control_and_padding_stay_where_the_batch_is(gpu):
    rows = [torch.zeros(n, 2, device="cuda") for n in (3, 5)]
    x, mask = pad_stack(rows)
    assert mask is not None and (x.device.type, mask.device.type) == ("cuda", "cuda")
    with Watched() as watch:
        seen = PermutedValues(0, OneProcess())(Batch(x, torch.zeros(2, device="cuda"), mask), 1)
    assert seen.x.device.type == "cuda" and not watch.waits


def test_what_goes_to_a_gpu_is_pinned_and_what_comes_from_it_is_waited_for(gpu):
    with Watched() as watch:
        there = sent(torch.zeros(3), "cuda")
        assert there.device.type == "cuda" and not watch.waits
        assert Batch(there, there).to("cpu").x.device.type == "cpu"
    assert len(watch.waits) == 2  # a copy that nobody waits for would be read too early
