"""A pretrained encoder as a stem: which weights train, at which rate, and what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import bert, png, vit
from torch.nn import functional as F

from uml_core.arms import build_fit
from uml_core.encoders import locate, open_encoder
from uml_core.encoders.base import Wanted
from uml_core.errors import UserError
from uml_core.export import load, target_model
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS, Batch
from uml_core.optimiser import parameter_groups
from uml_core.recipe import from_dict
from uml_core.specs import ModelSpec, TrainSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return vit(tmp_path_factory.mktemp("encoder") / "vit")


def stemmed(folder: Path, **options) -> UnpairedLearner:
    image = KINDS["image"](
        KINDS["image"].Options(stem="encoder", encoder=str(folder), **options)
    ).with_input(torch.zeros(3, 32, 32))
    return UnpairedLearner({"image": image}, ModelSpec(width=8, trunk="none"), num_classes=3)


def batch(learner: UnpairedLearner, count: int = 4) -> Batch:
    image = learner.modalities["image"]
    items = [image.decode(png(40, 40, seed), "png") for seed in range(count)]
    x, mask = image.collate(items)
    return Batch(x, torch.arange(count) % 3, mask)


def gradients(learner: UnpairedLearner, made: Batch) -> dict[str, torch.Tensor]:
    learner.zero_grad()
    F.cross_entropy(learner.logits("image", made), made.y).backward()
    found = {n: p.grad for n, p in learner.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def test_the_stem_sees_what_the_frozen_encoder_sees(folder):
    learner = stemmed(folder)
    options = learner.modalities["image"].options
    assert (options.size, options.mean, options.std) == (32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data = png(32, 32, 7)  # of the encoder's own size: nothing is resized
    frozen = open_encoder(locate(str(folder)), "image", Wanted())
    expected = frozen.encode([frozen.decode(data)])[0]
    item = learner.modalities["image"].decode(data, "png")
    stem: Any = learner.eval().stems["image"]
    with torch.no_grad():
        found = stem._how.vectors(stem.normalise(item[None]))[0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tune", "trains"),
    [
        ("full", {"network", "projection"}),
        ("lora", {"lora", "projection"}),
        ("frozen", {"projection"}),
    ],
)
def test_the_right_weights_train(folder, tune, trains):
    learner = stemmed(folder, tune=tune)
    before = {n: p.detach().clone() for n, p in learner.named_parameters()}
    made = batch(learner)
    optimizer = torch.optim.AdamW(parameter_groups(learner, TrainSpec()), lr=1e-2)
    for _ in range(2):
        gradients(learner, made)
        optimizer.step()
    moved = {n for n, p in learner.named_parameters() if not torch.equal(p, before[n])}
    parts = {
        "lora" if "lora_" in n else "network" if "network" in n else "projection"
        for n in moved
        if n.startswith("stems")
    }
    assert parts == trains and "classifier.weight" in moved
    if tune == "full":  # none is left out, or data parallelism would wait for its gradient
        assert moved == set(before)


def test_recomputing_changes_no_gradient(folder):
    plain, saving = stemmed(folder), stemmed(folder, recompute=True)
    made = batch(plain)
    ours, theirs = gradients(plain.train(), made), gradients(saving.train(), made)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)
    assert gradients(stemmed(folder, tune="lora", recompute=True).train(), made)


def test_parts_have_learning_rates_of_their_own(folder):
    learner = stemmed(folder)
    spec = TrainSpec(lr_factors={"stems.image": 0.5, "stems.image.network": 0.01})
    groups = parameter_groups(learner, spec)
    factors = {id(p): g["factor"] for g in groups for p in g["params"]}
    for name, parameter in learner.named_parameters():
        inside = "stems.image.network" in name
        expected = 0.01 if inside else 0.5 if name.startswith("stems.image") else 1.0
        assert factors[id(parameter)] == expected, name


def recipe(folder: Path, **train):
    return from_dict(
        {
            "name": "tuned",
            "target": "image",
            "data_root": "/nowhere",
            "modalities": {
                "image": {"kind": "image", "train": "a.tar", "test": "b.tar", "stem": "encoder",
                          "encoder": str(folder)},
                "text": {"kind": "vector", "train": "t.tar", "dim": 5},
            },
            "model": {"width": 8, "trunk": "none", "heads": 1},
            "train": train,
        }
    )  # fmt: skip


def test_a_fit_steps_each_part_at_its_rate_in_bf16(folder):
    made = recipe(folder, lr_factors={"stems.image.network": 1e-3}, precision="bf16", lr_warmup=0)
    modalities = {n: made.modalities[n].build() for n in made.active}
    modalities["image"] = modalities["image"].with_input(torch.zeros(3, 32, 32))
    fit = build_fit(made, "uml", 0, {}, modalities, num_classes=3)
    before = {n: p.detach().clone() for n, p in fit.learner.named_parameters()}
    text = Batch(torch.randn(4, 5), torch.arange(4) % 3)
    fit.learner.train()
    fit.step({"image": [(0, batch(fit.learner))], "text": [(0, text)]}, 0)
    far = {n: (p - before[n]).abs().max().item() for n, p in fit.learner.named_parameters()}
    inside = [v for n, v in far.items() if n.startswith("stems.image.network") and v > 0]
    assert inside and max(inside) < 1e-2 * far["classifier.weight"]


def test_what_does_not_go_together_is_told(folder, tmp_path):
    image = KINDS["image"]
    options = {"setting": "supervised", "width": 8, "heads": 1}
    assert "encoder: give it" in image.check(image.Options(stem="encoder"), **options)[0]
    assert "encoder: give it" in image.check(image.Options(encoder="x"), **options)[0]
    found = image.check(
        image.Options(stem="encoder", encoder="x"), **{**options, "setting": "self_supervised"}
    )
    assert "sees the whole picture" in found[0]
    with pytest.raises(UserError, match=r"no part 'stems\.imag'"):
        recipe(folder, lr_factors={"stems.imag": 1.0})
    with pytest.raises(UserError, match=r"lr_factors\.trunk: must be above 0"):
        recipe(folder, lr_factors={"trunk": 0.0})
    missing = image(image.Options(stem="encoder", encoder=str(tmp_path / "none")))
    with pytest.raises(UserError, match="no such folder"):
        missing.with_input(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_an_exported_model_holds_its_encoder(tmp_path, tune):
    folder = vit(tmp_path / "vit")
    learner = stemmed(folder, tune=tune).eval()
    for parameter in learner.parameters():  # not the weights of the folder any more
        parameter.data += 0.01 * torch.randn_like(parameter)
    modality = learner.modalities["image"]
    made = target_model("image", modality, learner.spec, learner.state_dict(), "abc")
    made.save(tmp_path / "out")
    folder.rename(tmp_path / "gone")
    pictures = [png(50, 40, 1), png(32, 32, 2)]
    found = load(tmp_path / "out").predict(pictures)
    x, _ = modality.collate([modality.decode(data, "png") for data in pictures])
    with torch.no_grad():
        expected = learner.logits("image", Batch(x, torch.zeros(2))).softmax(1)
    assert torch.allclose(torch.from_numpy(found.probabilities), expected, atol=1e-5)
    assert not list((tmp_path / "out" / "encoder").glob("*.safetensors"))


def test_encoders_of_other_kinds_do_not_train(tmp_path):
    with pytest.raises(UserError, match="no image processor"):
        stemmed(bert(tmp_path / "bert"))
