import dataclasses

import pytest
import torch
import torch.nn.functional as F

from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner, seeded
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.modalities.common import masked_mean
from uml_core.specs import ModelSpec

SPEC = ModelSpec(width=16, depth=2, heads=4)
CLASSES = 5


def modality(kind, **options):
    return KINDS[kind](KINDS[kind].Options(**options))


def supervised_modalities():
    return {
        "image": modality("image", size=16, channels=(4, 4)),
        "text": modality("text", vocab=32),
        "pen": modality("sequence", dim=3),
        "clip": modality("vector", dim=6),
        "audio": modality("audio", mels=4, pool=False),
    }


def every_supervised_stem():
    return {
        **supervised_modalities(),
        "grid": modality("image", size=16, channels=(4, 4), pool=False),
        "vit": modality("image", size=16, stem="vit", patch=8, pool=False),
        "patches": modality("image", size=16, stem="patches", patch=8),
        "marked": modality("image", size=16, stem="patches", patch=8, class_token=True),
        "tokens": modality("text", vocab=32, stem="tokens"),
        "conv": modality("sequence", dim=3, stem="conv1d", pool=False),
        "pooled": modality("sequence", dim=3, stem="conv1d"),
    }


def series_modalities():
    return {
        "patches": modality("image", size=16, stem="vit", patch=8),
        "text": modality("text", vocab=32, stem="tokens"),
        "pen": modality("sequence", dim=3),
        "audio": modality("audio", mels=4, stem="patches", patch=4),
        "table": modality("vector", dim=6),
    }


def learner(modalities=None, spec=SPEC, classes=CLASSES, **more):
    modalities = modalities or (supervised_modalities() if classes else series_modalities())
    return UnpairedLearner(modalities, spec, num_classes=classes, **more).eval()


def items(kind, lengths, seed=0):
    """Decoded items of a kind; lengths count for kinds that have one."""
    g = torch.Generator().manual_seed(seed)
    make = {
        "image": lambda n: torch.randint(0, 256, (3, 16, 16), generator=g, dtype=torch.uint8),
        "text": lambda n: torch.randint(1, 32, (n,), generator=g),
        "sequence": lambda n: torch.randn(n, 3, generator=g),
        "vector": lambda n: torch.randn(6, generator=g),
        "audio": lambda n: torch.randn(4, n, generator=g),
    }[kind]
    return [make(n) for n in lengths]


def batch(model, name, lengths=(7, 3, 1, 5), y=None, seed=0):
    m = model.modalities[name]
    x, mask = m.collate(items(m.kind, lengths, seed))
    return Batch(x, torch.arange(len(lengths)) % CLASSES if y is None else torch.tensor(y), mask)


VARIANTS = [
    {},
    {"positions": "learned"},
    {"positions": "sinusoidal", "norm": "post", "input_norm": True},
    {"input_projection": True, "activation": "relu", "logit_scale": "learned"},
    {"trunk": "none"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("classes", [CLASSES, None])
def test_an_embedding_depends_on_its_sample_alone(classes, variant):
    """Alone, with batch mates, with longer batch mates: the reference moved by 14 % (fault 5)."""
    if classes is None and "trunk" in variant:
        return
    every = every_supervised_stem() if classes else series_modalities()
    model = learner(every, classes=classes, spec=dataclasses.replace(SPEC, **variant))
    for name, m in model.modalities.items():
        samples = items(m.kind, (7, 3, 1, 9, 16))
        alone = torch.cat([embed(model, name, [s]) for s in samples])
        torch.testing.assert_close(embed(model, name, samples), alone, msg=name)
        torch.testing.assert_close(embed(model, name, samples[:2]), alone[:2], msg=name)


def embed(model, name, samples):
    x, mask = model.modalities[name].collate(samples)
    with torch.no_grad():
        return model.embed(name, Batch(x, torch.zeros(len(samples)), mask))


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_a_loss_is_the_sum_over_its_samples_whatever_the_padding(classes):
    model = learner(classes=classes)
    for name, m in model.modalities.items():
        samples, y = items(m.kind, (7, 3, 1, 9, 16)), torch.tensor([0, 1, -1, 2, 3])
        together = one_loss(model, name, samples, y)
        parts = [one_loss(model, name, [s], y[i : i + 1]) for i, s in enumerate(samples)]
        torch.testing.assert_close(together[0], sum(p[0] for p in parts), msg=name)
        assert together[1] == sum(p[1] for p in parts), name


def one_loss(model, name, samples, y):
    x, mask = model.modalities[name].collate(samples)
    sums, terms = model([(name, Batch(x, y, mask))])
    return sums[0].detach(), int(terms[0])


def test_terms_count_predicted_positions():
    model = learner(classes=None)
    expected = {
        "patches": 4 * (4 - 1),
        "text": 6 + 2 + 1 + 4,
        "pen": 6 + 2 + 1 + 4,
        "audio": 1 + 1 + 1 + 1,  # 7, 3, 1, 5 spectra make 2, 1, 1, 2 tokens
        "table": 4,
    }
    for name, count in expected.items():
        assert int(model([(name, batch(model, name))])[1]) == count, name


@pytest.mark.parametrize("classes", [CLASSES, None])
@pytest.mark.parametrize("trunk", ["transformer", "none"])
def test_one_call_for_several_modalities_equals_separate_calls(classes, trunk):
    if trunk == "none" and classes is None:
        return
    model = learner(classes=classes, spec=dataclasses.replace(SPEC, trunk=trunk))
    names = [*model.modalities, *model.modalities]  # two batches of each
    parts = [(name, batch(model, name, seed=i)) for i, name in enumerate(names)]
    sums, terms = model(parts)
    assert sums.shape == terms.shape == (len(parts),)
    for i, part in enumerate(parts):
        alone = model([part])
        torch.testing.assert_close(sums[i], alone[0][0], msg=part[0])
        assert terms[i] == alone[1][0]


def test_one_call_gives_the_gradients_of_separate_calls():
    model = learner(classes=None)
    parts = [(name, batch(model, name)) for name in model.modalities]
    model(parts)[0].sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for part in parts:
        model([part])[0].sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, together[name], rtol=1e-4, atol=1e-5, msg=name)


def test_modalities_of_one_length_share_a_trunk_call(monkeypatch):
    model = learner()
    calls = []
    forward = model.trunk.forward

    def spy(x, mask):
        calls.append((len(x), mask is None))
        return forward(x, mask)

    monkeypatch.setattr(model.trunk, "forward", spy)
    model([(name, batch(model, name)) for name in ("image", "pen", "text", "clip")])
    assert sorted(calls) == [(4, False), (12, True)]


def test_logits_are_the_shared_bias_free_head_on_the_mean_of_valid_positions():
    model = learner()
    b = batch(model, "pen")
    r, mask = model.tokens("pen", b)
    assert r.shape == (4, 7, 16) and mask.sum(1).tolist() == [7, 3, 1, 5]
    mean = torch.stack([r[i, :n].mean(0) for i, n in enumerate((7, 3, 1, 5))])
    torch.testing.assert_close(model.embed("pen", b), mean)
    torch.testing.assert_close(model.logits("pen", b), mean @ model.classifier.weight.T)
    total = F.cross_entropy(model.logits("pen", b), b.y, reduction="sum")
    torch.testing.assert_close(model([("pen", b)])[0][0], total)


def test_an_image_with_a_class_token_is_read_at_that_token():
    model = learner(every_supervised_stem())
    for name, tokens in (("marked", 5), ("patches", 4)):
        b = batch(model, name)
        r, mask = model.tokens(name, b)
        assert r.shape == (4, tokens, 16) and mask is None
        expected = r[:, 0] if name == "marked" else r.mean(1)
        torch.testing.assert_close(model.embed(name, b), expected)
        logits = expected @ model.classifier.weight.T
        total = F.cross_entropy(logits, b.y, reduction="sum")
        torch.testing.assert_close(model([(name, b)])[0][0], total)


@pytest.mark.parametrize("trunk", ["transformer", "none"])
def test_a_fixed_logit_scale_multiplies_every_modality(trunk):
    spec = dataclasses.replace(SPEC, trunk=trunk)
    plain, scaled = (learner(spec=dataclasses.replace(spec, logit_scale_value=v)) for v in (1, 100))
    assert plain.state_dict().keys() == scaled.state_dict().keys()
    for name in ("pen", "clip"):
        b = batch(plain, name)
        torch.testing.assert_close(scaled.logits(name, b), 100 * plain.logits(name, b))
        total = F.cross_entropy(100 * plain.logits(name, b), b.y, reduction="sum")
        torch.testing.assert_close(scaled([(name, b)])[0][0], total)
    learned = learner(spec=dataclasses.replace(spec, logit_scale="learned", logit_scale_value=100))
    b = batch(plain, "clip")
    torch.testing.assert_close(learned.logits("clip", b), scaled.logits("clip", b))


def test_a_frozen_trunk_passes_gradients_on():
    model = learner()
    model.freeze_trunk(True)
    model([("pen", batch(model, "pen"))])[0].sum().backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.stems["pen"].parameters())
    model.freeze_trunk(False)
    model([("pen", batch(model, "pen"))])[0].sum().backward()
    assert all(p.grad is not None for p in model.trunk.parameters())
    learner(spec=dataclasses.replace(SPEC, trunk="none")).freeze_trunk(True)  # nothing to freeze


def test_learned_logit_scales_are_one_factor_per_modality_starting_at_one():
    model = learner(spec=dataclasses.replace(SPEC, logit_scale="learned"))
    plain = learner()
    b = batch(model, "clip")
    torch.testing.assert_close(model.logits("clip", b), plain.logits("clip", b))
    with torch.no_grad():
        model.logit_scales["clip"].fill_(3.0)
    torch.testing.assert_close(model.logits("clip", b), 3 * plain.logits("clip", b))
    torch.testing.assert_close(
        model.logits("pen", batch(model, "pen")), plain.logits("pen", batch(model, "pen"))
    )
    model([("clip", b)])[0].sum().backward()
    assert model.logit_scales["clip"].grad != 0 and model.logit_scales["pen"].grad is None


def test_label_smoothing_reaches_the_loss():
    b = batch(learner(), "clip")
    model = learner(label_smoothing=0.2)
    expected = F.cross_entropy(model.logits("clip", b), b.y, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(model([("clip", b)])[0][0], expected)


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_the_target_path_starts_equal_whatever_else_the_model_holds(classes):
    every = supervised_modalities() if classes else series_modalities()
    alone = learner({"pen": every["pen"]}, classes=classes, seed=3)
    torch.manual_seed(99)
    among = learner(every, classes=classes, seed=3)
    state = among.state_dict()
    assert all(torch.equal(state[k], v) for k, v in alone.state_dict().items())
    twins = learner({"a": every["pen"], "b": every["pen"]}, classes=classes).stems
    assert not torch.equal(next(twins["a"].parameters()), next(twins["b"].parameters()))
    other = learner({"pen": every["pen"]}, classes=classes, seed=4).state_dict()
    assert not any(torch.equal(other[k], v) for k, v in alone.state_dict().items() if v.std() > 0)


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seeded(1, "x", lambda: torch.nn.Linear(2, 2))
    assert torch.equal(torch.rand(3), expected)


def test_class_means_are_unit_rows_and_missing_classes_keep_theirs():
    model = learner()
    before = model.classifier.weight.detach().clone()
    model.train()
    first = batch(model, "pen", y=[0, 0, 3, -1])
    second = batch(model, "pen", lengths=(2, 8), y=[3, 1], seed=1)
    assert model.init_head_from("pen", [first, second]) == [2, 4]
    assert model.training
    weight = model.classifier.weight.detach()
    model.eval()
    e1, e2 = model.embed("pen", first).detach(), model.embed("pen", second).detach()
    means = {0: e1[:2].mean(0), 3: (e1[2] + e2[0]) / 2, 1: e2[1]}
    for k, mean in means.items():
        torch.testing.assert_close(weight[k], mean / mean.norm())
        assert weight[k].norm() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(weight[[2, 4]], before[[2, 4]])


def test_class_means_need_a_classifier():
    model = learner(classes=None)
    with pytest.raises(UserError, match="supervised"):
        model.init_head_from("pen", [])


def test_shared_parameters_are_trunk_and_classifier():
    model = learner()
    model([("pen", batch(model, "pen")), ("image", batch(model, "image"))])[0].sum().backward()
    shared = {id(p) for p in model.shared_parameters()}
    for name, p in model.named_parameters():
        assert (id(p) in shared) == name.startswith(("trunk.", "classifier.")), name


def test_masked_mean_counts_valid_positions_exactly_in_half_precision():
    r = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    mask = torch.arange(1000)[None] < 777
    assert float(masked_mean(r, mask)[0, 0]) == pytest.approx(1.0, abs=0.01)
    assert masked_mean(torch.ones(2, 1, 4), None).shape == (2, 4)
