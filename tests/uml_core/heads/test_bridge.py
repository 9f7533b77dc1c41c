import json

import numpy as np
import pytest
import torch
from gaussians import DIMS, WIDTH, accuracy, world

from uml_core.errors import UserError
from uml_core.heads.aux_shift import text_shift
from uml_core.heads.bridge import Bridge
from uml_core.heads.bridge_sources import from_classifier, from_map, from_samples
from uml_core.heads.linear import prototypes
from uml_core.heads.problem import Labelled, unit

NAMES = tuple(f"thing {j}" for j in range(40))


def linear_bank(classes=60):
    """Texts, prototypes that are their linear image, and the image."""
    g = torch.Generator().manual_seed(0)
    texts = torch.randn(classes, WIDTH, generator=g)
    image, _ = torch.linalg.qr(torch.randn(DIMS, WIDTH, generator=g))
    return texts, texts @ image.mT, image


def test_a_linear_map_is_recovered():
    texts, weight, image = linear_bank()
    bridge = from_classifier(weight, texts, [str(j) for j in range(60)])
    new = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1))
    cosine = (unit(bridge.mapped(new)) * unit(new @ image.mT)).sum(1)
    assert cosine.min() > 0.95
    assert bridge.leaving.accuracy.mean > 90 and bridge.leaving.useful


def test_a_bridge_that_knows_nothing_is_at_chance():
    g = torch.Generator().manual_seed(0)
    bridge = from_classifier(
        torch.randn(60, DIMS, generator=g),
        torch.randn(60, WIDTH, generator=g),
        list(map(str, range(60))),
    )
    assert not bridge.leaving.useful
    assert bridge.leaving.chance == pytest.approx(100 / 12)
    low, high = bridge.leaving.accuracy.ci95
    assert low < bridge.leaving.chance < high


def test_rows_are_a_ridge_classifier_of_the_banks_samples():
    _, target, auxiliary = world()
    bridge = from_samples(target, auxiliary, NAMES)
    z = unit(target.x - target.means(40).mean(0)).double()
    h = torch.nn.functional.one_hot(target.y, 40).double() / len(z)  # all classes are of one size
    s = z.mT @ z / len(z)
    t = s.diagonal().mean()
    expected = torch.linalg.solve(s + t * torch.eye(DIMS), z.mT @ h).mT
    torch.testing.assert_close(bridge.rows, expected.float(), atol=1e-5, rtol=1e-3)


def test_unknown_classes_of_either_side_are_left_out():
    _, target, auxiliary = world()
    few = Labelled(target.x[target.y != 2], target.y[target.y != 2])
    some = Labelled(auxiliary.x[auxiliary.y != 5], auxiliary.y[auxiliary.y != 5])
    bridge = from_samples(few, some, NAMES)
    assert set(NAMES) - set(bridge.classes) == {"thing 2", "thing 5"}
    smaller = bridge.without(["thing 7"])
    assert smaller.prototypes.shape == (37, DIMS) and "thing 7" not in smaller.classes
    assert not torch.equal(smaller.map, bridge.map)
    with pytest.raises(UserError, match="at least"):
        bridge.without(NAMES[:-3])


def test_near_duplicates_by_name_and_by_cosine():
    texts, weight, _ = linear_bank(5)
    bridge = from_classifier(
        weight, texts, ["crocodile", "African crocodile", "wild cat", "lotus", "pot"]
    )
    found = bridge.near_duplicates(["crocodile head", "water lily", "spot"], None)
    assert found == {"crocodile head": ["crocodile"]}
    means = torch.stack([texts[2], texts[3] * 1.02, texts.mean(0) - (texts[4] - texts.mean(0))])
    found = bridge.near_duplicates(["crocodile head", "water lily", "spot"], means)
    assert found == {"crocodile head": ["crocodile", "wild cat"], "water lily": ["lotus"]}


def test_what_is_saved_is_loaded(tmp_path):
    problem, target, auxiliary = world(noise=1.5)
    encoders = {"target": {"weights": "a" * 64}, "auxiliary": {"weights": "b" * 64}}
    bridge = from_samples(target, auxiliary, NAMES, encoders)
    bridge.save(tmp_path / "b", {"near_duplicates": {}})
    loaded = Bridge.load(tmp_path / "b")
    assert loaded.classes == bridge.classes and loaded.leaving == bridge.leaving
    draw = problem.draw(1, (0, 1))
    for rows in ("map", "bank"):
        a, b = (text_shift(draw, rows, prototypes, made).rule.weight for made in (bridge, loaded))
        assert torch.equal(a, b)
    facts = json.loads((tmp_path / "b" / "bridge.json").read_text())
    assert facts["near_duplicates"] == {} and facts["encoders"] == encoders
    loaded.check_encoders(encoders)
    loaded.check_encoders({"target": None})  # features of unknown make cannot be refused
    with pytest.raises(UserError, match="another encoder of the target"):
        loaded.check_encoders({**encoders, "target": {"weights": "c" * 64}})
    with pytest.raises(UserError, match="yours have 7"):
        loaded.check_widths(7, WIDTH)
    with pytest.raises(UserError, match="no bridge"):
        Bridge.load(tmp_path)


def test_a_ready_map(tmp_path):
    problem, target, auxiliary = world(noise=1.5)
    made = from_samples(target, auxiliary, NAMES)
    path = tmp_path / "align.npz"
    np.savez(path, A=made.map.numpy().astype(np.float16), xm=np.zeros(DIMS), em=made.centre.numpy())
    ready = from_map(path)
    draw = problem.draw(1, (0, 1, 2))
    a, b = (accuracy(text_shift(draw, "map", prototypes, m), problem) for m in (made, ready))
    assert (a - b).abs().max() < 2
    with pytest.raises(UserError, match="rows: map"):
        text_shift(draw, "bank", prototypes, ready)
    np.savez(path, B=np.zeros(3))
    with pytest.raises(UserError, match="A and em"):
        from_map(path)
    path.write_bytes(b"no npz")
    with pytest.raises(UserError, match="cannot be read"):
        from_map(path)
