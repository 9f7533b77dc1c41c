import numpy as np
import pytest
import torch

from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.probes import linear_probe
from uml_core.specs import ModelSpec
from uml_core.views import Features, paired, probe_features, probe_views

CLASSES = 4
SIZES = {"train": 60, "val": 40, "test": 80}


def split(seed, prefix, count, dims, signal):
    """Labels 0..3 as two bits, one bit in the direction of `signal`."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.normal(size=(count, dims))
    x[:, 0] += 6 * (y // 2 if signal == "high" else y % 2)
    return Features(x, y, [f"{prefix}{i}" for i in range(count)])


def features(signal):
    """One modality knows the label's high bit, the other its low bit; keys pair them."""
    return {
        name: split(seed, name, count, 5, signal)
        for seed, (name, count) in enumerate(SIZES.items())
    }


def test_each_view_is_the_linear_probe_of_its_features():
    x, y = features("high"), features("low")
    views = probe_features("image", {"image": x, "text": y}, (0.1, 1.0, 10.0))
    assert list(views.results) == ["image", "text", "image+text"] and views.left_out == {}
    arrays = [a for s in ("train", "val", "test") for a in (x[s].x, x[s].y)]
    assert views.results["image"] == linear_probe(*arrays, grid=(0.1, 1.0, 10.0))
    arrays[0::2] = [np.hstack([x[s].x, y[s].x]) for s in ("train", "val", "test")]
    assert views.results["image+text"] == linear_probe(*arrays, grid=(0.1, 1.0, 10.0))


def test_two_halves_of_a_label_are_whole_together():
    views = probe_features("image", {"text": features("low"), "image": features("high")})
    accuracy = {name: result.test_accuracy for name, result in views.results.items()}
    assert 35 < accuracy["image"] < 65 and 35 < accuracy["text"] < 65
    assert accuracy["image+text"] > 95


def test_pairs_are_found_by_key_in_any_order_and_number():
    a = split(0, "k", 30, 2, "high")
    order = np.random.default_rng(1).permutation(30)[:20]
    b = Features(a.x[order] + 100, a.y[order], [a.keys[i] for i in order])
    joined = paired(a, b)
    rows = np.sort(order)
    assert joined.keys == [a.keys[i] for i in rows]
    np.testing.assert_array_equal(joined.y, a.y[rows])
    np.testing.assert_array_equal(joined.x, np.hstack([a.x[rows], a.x[rows] + 100]))


def test_equal_numbers_are_no_pairs():
    a = split(0, "k", 30, 2, "high")
    other = split(7, "k", 30, 2, "high")
    assert "equal keys have different labels" in paired(a, other)
    assert "no key" in paired(a, a._replace(keys=[f"other{i}" for i in range(30)]))
    few = Features(a.x[:10], a.y[:10], a.keys[:10])
    assert paired(a, few) == "only 10 of 30 samples have a partner"
    unpaired = {s: f._replace(keys=[f"t-{k}" for k in f.keys]) for s, f in features("low").items()}
    views = probe_features("image", {"image": features("high"), "text": unpaired})
    assert list(views.results) == ["image", "text"]
    assert views.left_out == {"image+text": "no key of one modality occurs in the other"}


def test_samples_without_a_label_are_left_out():
    marked = {
        s: f._replace(y=np.where(np.arange(len(f.y)) < 5, -1, f.y))
        for s, f in features("high").items()
    }
    cut = {s: Features(f.x[5:], f.y[5:], f.keys[5:]) for s, f in features("high").items()}
    assert probe_features("x", {"x": marked}).results == probe_features("x", {"x": cut}).results


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_learners_views_are_mean_pooled_outputs_of_its_modalities(classes):
    kind = KINDS["sequence"]
    model = UnpairedLearner(
        {"pen": kind(kind.Options(dim=2)), "wave": kind(kind.Options(dim=3))},
        ModelSpec(width=8, depth=1, heads=2),
        num_classes=classes,
    )
    parts = {}
    for name, dim in (("pen", 2), ("wave", 3)):
        parts[name] = tuple(batches(model, name, dim, s, n) for s, n in enumerate((40, 20, 20)))
    views = probe_views(model, "pen", parts)
    assert list(views.results) == ["pen", "wave", "pen+wave"]
    embedded = [
        (torch.cat([model.eval().embed("wave", b) for b in of]).detach().numpy(), label(of))
        for of in parts["wave"]
    ]
    expected = linear_probe(*(array for pair in embedded for array in pair))
    assert views.results["wave"] == expected


def batches(model, name, dim, split_number, count, size=10):
    g = torch.Generator().manual_seed(split_number)
    out = []
    for start in range(0, count, size):
        lengths = torch.randint(1, 6, (size,), generator=g).tolist()
        x, mask = model.modalities[name].collate(
            [torch.randn(n, dim, generator=g) for n in lengths]
        )
        keys = [f"{split_number}-{start + i}" for i in range(size)]
        out.append(Batch(x, (start + torch.arange(size)) % CLASSES, mask, keys))
    return out


def label(of):
    return torch.cat([b.y for b in of]).numpy()
