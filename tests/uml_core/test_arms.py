import dataclasses

import pytest
import torch
from recipes import changed

from uml_core.arms import applicable, arm_schedule, build_fit, control_description, head_source
from uml_core.controls import PermutedLabels, PermutedValues, derangement
from uml_core.errors import UserError
from uml_core.loop import train
from uml_core.modalities.base import Batch

CLASSES = 4


def recipe(**changes):
    base = {
        "name": "r",
        "data_root": ".",
        "target": "x",
        "modalities": {
            "x": {"kind": "vector", "train": "x", "dim": 6},
            "t": {"kind": "vector", "train": "t", "dim": 8, "stem": "identity", "weight": 0.5},
            "a": {"kind": "sequence", "train": "a", "dim": 3, "ratio": 0.5},
        },
        "model": {"width": 8, "depth": 1, "heads": 2},
        "train": {"steps": 8, "batch_size": 4, "lr": 0.01, "validate_every": 2, "workers": 1},
    }
    return changed(base, changes)


def batches(name, count=16):
    """Endless numbered batches of a modality; those of another number differ."""
    g = torch.Generator().manual_seed(len(name) + ord(name[0]))
    shape = {"x": (4, 6), "t": (4, 8), "a": (4, 5, 3)}[name]
    y = torch.randint(0, CLASSES, (count, 4), generator=g)
    return [Batch(torch.randn(*shape, generator=g), y[i]) for i in range(count)]


def fit_of(r, arm, seed=0, point=None):
    mods = {name: spec.build() for name, spec in r.modalities.items()}
    classes = CLASSES if r.setting == "supervised" else None
    return build_fit(
        r,
        arm,
        seed,
        point or {},
        mods,
        num_classes=classes,
        head_batches=lambda name: batches(name),
    )


def run(r, fits):
    """Trains fits in lockstep; returns (modality, number) of every batch each fit trained on."""
    streams = {name: batches(name) for name in r.modalities}
    given = dict.fromkeys(streams, 0)
    of_batch = {id(b.x): (name, i) for name, group in streams.items() for i, b in enumerate(group)}
    seen = [[] for _ in fits]
    for fit, log in zip(fits, seen, strict=True):
        inner = fit.module

        def spy(parts, inner=inner, log=log):
            log.extend(of_batch.get(id(b.x), (name, None)) for name, b in parts)
            return inner(parts)

        fit.module = spy

    def next_batch(name):
        given[name] += 1
        return given[name] - 1, streams[name][given[name] - 1]

    train(fits, next_batch, r.schedule(), evaluate=lambda fit: 0.0)
    return seen


# ----------------------------------------------------------------------------- which arms


def test_arms_that_apply():
    assert applicable(recipe()) == [
        "unimodal",
        "unimodal_direct",
        "uml",
        "uml_init",
        "uml_permuted",
    ]
    assert applicable(recipe(modalities={"x": {"dim": 8, "stem": "identity"}})) == [
        "unimodal",
        "uml",
        "uml_init",
        "uml_permuted",
    ]
    ssl = recipe(setting="self_supervised")
    assert applicable(ssl) == ["unimodal", "uml", "uml_permuted"]
    no_text = recipe(modalities={"t": {"ratio": 0}})
    assert head_source(no_text) is None
    assert applicable(no_text) == ["unimodal", "unimodal_direct", "uml", "uml_permuted"]
    assert head_source(recipe(model={"head_init": "class_means:a"})) == "a"


def test_a_comparison_needs_company_and_its_three_arms():
    with pytest.raises(UserError, match="trains x alone"):
        applicable(recipe(modalities={"t": {"ratio": 0}, "a": {"ratio": 0}}))
    with pytest.raises(UserError, match="always holds uml_permuted"):
        applicable(recipe(compare={"arms": ["unimodal", "uml"]}))
    with pytest.raises(UserError, match="uml_init does not apply"):
        applicable(
            recipe(
                setting="self_supervised",
                compare={"arms": ["unimodal", "uml", "uml_init", "uml_permuted"]},
            )
        )


# --------------------------------------------------------------------------------- fairness

ARMS = ("unimodal", "uml", "uml_init", "uml_permuted")


def test_the_target_path_of_all_arms_starts_equal_at_one_seed():
    r = recipe()
    states = {arm: fit_of(r, arm, seed=3).learner.state_dict() for arm in ARMS}
    alone = states["unimodal"]
    for arm in ("uml", "uml_permuted"):
        assert all(torch.equal(states[arm][k], v) for k, v in alone.items()), arm
    init = {k for k, v in alone.items() if not torch.equal(states["uml_init"][k], v)}
    assert init == {"classifier.weight"}
    other = fit_of(r, "unimodal", seed=4).learner.state_dict()
    assert not torch.equal(other["classifier.weight"], alone["classifier.weight"])


def test_the_baseline_has_the_target_paths_parameters():
    r = recipe()
    uml = fit_of(r, "uml").learner
    path = sum(
        p.numel() for m in (uml.stems["x"], uml.trunk, uml.classifier) for p in m.parameters()
    )
    assert sum(p.numel() for p in fit_of(r, "unimodal").parameters) == path
    direct = fit_of(r, "unimodal_direct").learner
    assert [tuple(p.shape) for p in direct.parameters()] == [(CLASSES, 6)]


@pytest.mark.parametrize("mode", ["joint", "alternate"])
def test_every_arm_takes_the_same_target_batches_in_order(mode):
    r = recipe(train={"mode": mode})
    seen = dict(zip(ARMS, run(r, [fit_of(r, arm) for arm in ARMS]), strict=True))
    for arm, log in seen.items():
        assert [s for s in log if s[0] == "x"] == [("x", i) for i in range(8)], arm
    assert len(seen["unimodal"]) == 8
    assert [s for s in seen["uml"] if s[0] == "t"] == [("t", i) for i in range(8)]
    assert [s for s in seen["uml"] if s[0] == "a"] == [("a", i) for i in range(4)]


def test_warmup_on_an_auxiliary_adds_no_target_batch_to_any_arm():
    r = recipe(train={"warmup": {"modality": "t", "steps": 3}})
    alone, uml = run(r, [fit_of(r, "unimodal"), fit_of(r, "uml")])
    assert alone == [("x", i) for i in range(8)]
    assert uml[:3] == [("t", 0), ("t", 1), ("t", 2)]
    assert [s for s in uml if s[0] == "x"] == alone
    assert arm_schedule(r, ["x"]).total == r.schedule().total == 11


def test_a_fit_learns_the_same_alone_and_in_lockstep():
    r = recipe()
    together = [fit_of(r, arm) for arm in ARMS]
    run(r, together)
    for arm, fit in zip(ARMS, together, strict=True):
        alone = fit_of(r, arm)
        run(r, [alone])
        for name, value in alone.learner.state_dict().items():
            assert torch.equal(fit.learner.state_dict()[name], value), (arm, name)


# -------------------------------------------------------------------------------- the arms


def test_weights_and_tuned_values_reach_the_fit():
    fit = fit_of(recipe(), "uml", point={"lr": 0.5, "weight_decay": 0.0, "weight": 3.0})
    assert fit.weights == {"x": 1.0, "t": 1.5, "a": 3.0}
    assert fit.spec.lr == 0.5 and fit.spec.weight_decay == 0.0
    assert fit_of(recipe(), "uml").weights == {"x": 1.0, "t": 0.5, "a": 1.0}
    assert fit_of(recipe(modalities={"a": {"ratio": 0}}), "uml").modalities == ["x", "t"]


def test_the_permuted_arm_sees_deranged_labels_of_auxiliaries_only():
    fit = fit_of(recipe(), "uml_permuted", seed=2)
    assert set(fit.views) == {"t", "a"} and isinstance(fit.views["t"], PermutedLabels)
    table = torch.from_numpy(derangement(CLASSES, 2))
    b = batches("t")[0]
    seen = {name: batch for name, batch, _ in fit._mine({"x": [(0, b)], "t": [(0, b)]})}
    assert torch.equal(seen["t"].y, table[b.y]) and seen["x"] is b
    assert fit_of(recipe(), "uml").views == {}


def test_the_permuted_arm_of_the_self_supervised_setting_permutes_values():
    r = recipe(setting="self_supervised")
    fit = fit_of(r, "uml_permuted", seed=2)
    assert isinstance(fit.views["a"], PermutedValues) and fit.learner.classifier is None
    assert "feature" in control_description(r) and "labels" in control_description(recipe())


def test_uml_init_starts_at_class_means_of_its_source():
    head = fit_of(recipe(), "uml_init").learner.classifier.weight
    torch.testing.assert_close(head.norm(dim=1), torch.ones(CLASSES))
    plain = fit_of(recipe(), "uml").learner
    plain.init_head_from("t", batches("t"))
    assert torch.equal(plain.classifier.weight, head)


def test_the_self_supervised_arms_train():
    r = recipe(setting="self_supervised")
    fits = [fit_of(r, arm) for arm in ("unimodal", "uml", "uml_permuted")]
    before = [fit.learner.state_dict()["trunk.blocks.0.up.weight"].clone() for fit in fits]
    run(r, fits)
    for fit, weight in zip(fits, before, strict=True):
        assert not torch.equal(fit.learner.trunk.blocks[0].up.weight, weight)
        assert fit.history["losses"][-1]["x"] > 0


def test_specs_of_a_recipe_are_not_changed_by_building():
    r = recipe()
    copy = dataclasses.replace(r)
    fit_of(r, "unimodal_direct", point={"lr": 1.0})
    assert r == copy and r.modalities["x"].options.stem == "linear"
