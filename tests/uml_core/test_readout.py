import numpy as np
import pytest
import torch

from uml_core.errors import RunError, UserError
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.probes import fit_linear_probe
from uml_core.readout import classifier_readout, judge, percent_of, probe_readout
from uml_core.specs import ModelSpec

RNG = np.random.default_rng(0)


def learner(num_classes: int | None, scale: str = "fixed") -> UnpairedLearner:
    kind = KINDS["vector"]
    made = UnpairedLearner(
        {"image": kind(kind.Options(dim=6, stem="linear"))},
        ModelSpec(width=8, depth=1, heads=2, logit_scale=scale),
        num_classes=num_classes,
    )
    return made.eval()


@pytest.mark.parametrize("scale", [None, 3.0, -2.0])
def test_the_readout_decides_as_the_classifier_does(scale):
    model = learner(5, "fixed" if scale is None else "learned")
    if scale is not None:
        model.logit_scales["image"].data.fill_(scale)
    batch = Batch(torch.randn(40, 6), torch.zeros(40, dtype=torch.int64))
    with torch.no_grad():
        features = model.embed("image", batch).numpy()
        logits = model.logits("image", batch).numpy()
    readout = classifier_readout(model, "image")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(readout.scores(features) * lengths, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(readout.lift(features), axis=1), 1)
    assert (readout.scores(features).argmax(1) == logits.argmax(1)).all()


def test_the_readout_of_a_probe_is_the_probe():
    y = RNG.integers(0, 3, 90)
    x = RNG.normal(size=(90, 4)) + 5 + np.eye(3, 4)[y]
    probe, _ = fit_linear_probe(x, y, x, y, (1.0,))
    readout = probe_readout(probe)
    np.testing.assert_allclose(readout.scores(x), probe.scores(x), rtol=1e-9, atol=1e-9)
    assert readout.lift(x).shape == (90, 5) and (readout.lift(x)[:, -1] == 1).all()


def test_without_a_classifier_there_is_nothing_to_read():
    with pytest.raises(UserError, match="probe"):
        classifier_readout(learner(None), "image")


def test_judging_counts_what_is_right_in_percent():
    class First:
        classes = np.array([3, 7])

        def scores(self, x):
            return np.stack([x[:, 0], np.zeros(len(x))], 1)

    x, y = np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([3, 7, 7, 7])
    found = judge(First(), x, y)
    assert found.predicted.tolist() == [3, 3, 7, 7]
    assert found.accuracy.value == 75.0 and found.samples == 4
    assert found.accuracy.low <= 75 <= found.accuracy.high
    assert found.per_class[7].recall == pytest.approx(200 / 3)
    with pytest.raises(RunError, match="not finite"):
        judge(First(), x * np.nan, y)


def test_an_interval_from_counts_is_that_of_a_share():
    found = percent_of(320, 1000)
    half = 1.96 * 100 * np.sqrt(0.32 * 0.68 / 1000)
    assert found.value == 32.0
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
