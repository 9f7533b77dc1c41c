"""The whole set of analyses on worlds whose answers are known."""

import dataclasses

import numpy as np
import pytest

from uml_core.analysis.alignment import linear_cka
from uml_core.analysis.prototypes import class_means, prototype_map
from uml_core.analysis.suite import TRAINED, UNTRAINED, Pairs, Twin, analyse
from uml_core.probes import fit_linear_probe
from uml_core.readout import Readout, probe_readout

RNG = np.random.default_rng(1)
CLASSES, WIDTH = 6, 16
CENTRES = 3 * RNG.normal(size=(CLASSES, WIDTH))
HEADS = {
    TRAINED: Readout(CENTRES, np.arange(CLASSES)),
    UNTRAINED: Readout(RNG.normal(size=(CLASSES, WIDTH)), np.arange(CLASSES)),
}


def twin(per_class: int = 40) -> Twin:
    """Classes at shared centres after training, nothing but noise before."""
    y = np.tile(np.arange(CLASSES), per_class)
    noise = RNG.normal(size=(2, len(y), WIDTH))
    return Twin(CENTRES[y] + noise[0], noise[1], y)


def test_what_was_learnt_stands_out_from_the_untrained_network():
    image, text = twin(), twin()
    found = analyse("image", image, HEADS, {"text": text}, {"text": Pairs(image, text)})
    assert found.left_out.keys() <= {"plane"}
    means = "image and text, class means"
    after, before = (found.alignment[f"{means}, {state}"][0] for state in (TRAINED, UNTRAINED))
    assert after.value > 0.95 and after.p_value < 0.05 and after.samples == CLASSES
    assert before.value < after.value
    x, y = (class_means(t.trained, t.labels, CLASSES)[0] for t in (image, text))
    assert after == linear_cka(x, y)
    pairs = found.alignment["image and text, pairs, trained"]
    assert [a.measure for a in pairs] == ["linear CKA", "mutual kNN"]
    assert pairs[0].samples == len(image.labels)
    assert "image, trained and untrained" in found.alignment
    assert found.margins[TRAINED].mean.low > found.margins[UNTRAINED].mean.high
    assert found.separability[TRAINED].silhouette.value > 0.5
    assert found.separability[UNTRAINED].silhouette.value < 0.1
    assert found.prototypes["text"].hit_rate.value == 1.0
    assert len(found.neurons["text"].overall.multimodal) > WIDTH / 2
    assert found.neurons["text"].by_class == {}  # more classes than are told apart
    assert set(found.ranks) == {
        f"{name}, {state}" for name in ("image", "text") for state in (TRAINED, UNTRAINED)
    }
    assert found.confusion.matrix.sum() == len(image.labels)


def test_the_plane_is_that_of_the_most_confused_pair():
    image = twin()
    moved = np.where((image.labels == 4)[:, None], CENTRES[2] - CENTRES[4], 0.0)
    mixed = dataclasses.replace(image, trained=image.trained + 0.9 * moved)
    found = analyse("image", mixed, HEADS, {}, {})
    assert found.confusion.pair == (2, 4) == found.plane.classes
    assert len(found.plane.labels) == 80


def test_a_probe_reads_out_where_there_is_no_classifier():
    image, text = twin(), twin()
    probes = {
        state: probe_readout(fit_linear_probe(x, image.labels, x, image.labels, (1.0,))[0])
        for state, x in image.states()
    }
    found = analyse("image", image, probes, {"text": text}, {"text": "no partner"})
    means, _ = class_means(image.trained, image.labels, CLASSES)
    expected = prototype_map(
        means - image.trained.mean(0), text.trained - text.trained.mean(0), text.labels
    )
    np.testing.assert_allclose(found.prototypes["text"].matrix, expected.matrix)
    assert found.left_out["neurons: text"] == "no partner"
    assert found.margins[TRAINED].positive_share.value > 0.95


def test_what_cannot_be_measured_says_why():
    image = twin()
    nameless = dataclasses.replace(twin(), labels=np.full(len(image.labels), -1))
    found = analyse("image", image, HEADS, {"text": nameless}, {"text": "no partner"})
    assert "three classes" in found.left_out["alignment: text"]
    assert "three classes" in found.left_out["prototypes: text"]
    assert "text, trained" in found.ranks and not found.prototypes
    alone = Twin(image.trained[:2], image.untrained[:2], image.labels[:2])
    assert "separability" in analyse("image", alone, HEADS, {}, {}).left_out


def test_two_classes_get_correlations_of_their_own():
    image, text = twin(), twin()
    few = image.labels < 2
    pair = [Twin(t.trained[few], t.untrained[few], t.labels[few]) for t in (image, text)]
    found = analyse("image", image, HEADS, {}, {"text": Pairs(*pair)})
    assert set(found.neurons["text"].by_class) == {0, 1}


@pytest.mark.parametrize("samples", [3, 5])
def test_few_classes_have_few_neighbours(samples):
    image, text = twin(1), twin(1)
    rows = slice(0, samples)
    cut = [Twin(t.trained[rows], t.untrained[rows], t.labels[rows]) for t in (image, text)]
    found = analyse("image", cut[0], HEADS, {"text": cut[1]}, {})
    assert found.alignment["image and text, class means, trained"][1].samples == samples
