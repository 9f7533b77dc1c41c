"""A saved target-only model gives the learner's own numbers, and what is wrong with it is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uml_core.arms import without_projection
from uml_core.errors import UserError
from uml_core.export import load, payload, target_model
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS, BadSample, Batch
from uml_core.specs import ModelSpec

CLASSES = ("cat", "dog", "owl")


def learner(classes=3, **model):
    made = {
        "text": KINDS["text"](KINDS["text"].Options(vocab=64)),
        "vector": KINDS["vector"](KINDS["vector"].Options(dim=5)),
    }
    spec = ModelSpec(width=8, depth=1, heads=2, **model)
    return UnpairedLearner(made, spec, num_classes=classes, seed=3).eval()


@pytest.mark.parametrize("name", ["text", "vector"])
@pytest.mark.parametrize("scale", ["fixed", "learned"])
def test_a_loaded_model_gives_the_numbers_of_the_learner(name, scale, tmp_path):
    whole = learner(logit_scale=scale, logit_scale_value=3.0)
    modality = whole.modalities[name]
    model = target_model(name, modality, whole.spec, whole.state_dict(), CLASSES)
    model.save(tmp_path / "out")
    held = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert (held and not any("text" in key for key in held)) or name == "text"
    assert not any(
        key.startswith(f"stems.{other}") for other in {"text", "vector"} - {name} for key in held
    )
    samples = ["a cat sat", "an owl"] if name == "text" else list(np.eye(5)[:2])
    found = load(tmp_path / "out").predict(samples)
    items = [modality.decode(payload(s), modality.suffixes[0]) for s in samples]
    x, mask = modality.collate(items)
    with torch.no_grad():
        logits = whole.logits(name, Batch(x, torch.zeros(2), mask))
        embedded = whole.embed(name, Batch(x, torch.zeros(2), mask))
    assert np.allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-6)
    assert np.allclose(found.embeddings, embedded.numpy(), atol=1e-6)
    assert found.classes == [CLASSES[k] for k in logits.argmax(1)]
    one = [load(tmp_path / "out").predict([s]).probabilities[0] for s in samples]
    assert np.allclose(one, found.probabilities, atol=1e-6)


def test_a_self_supervised_model_gives_embeddings_alone(tmp_path):
    vector = KINDS["vector"](KINDS["vector"].Options(dim=5))
    spec = ModelSpec(width=8, depth=1, heads=2)
    whole = UnpairedLearner({"v": vector}, spec, num_classes=None)
    target_model("v", vector, spec, whole.state_dict(), None).save(tmp_path)
    found = load(tmp_path).predict([np.ones(5)])
    assert found.classes is None and found.probabilities is None
    assert found.embeddings.shape == (1, 8)


def test_the_direct_arm_takes_features_as_they_are(tmp_path):
    vector = KINDS["vector"](KINDS["vector"].Options(dim=5))
    direct, spec = without_projection(vector, ModelSpec(width=8))
    whole = UnpairedLearner({"v": direct}, spec, num_classes=3)
    target_model("v", direct, spec, whole.state_dict(), CLASSES).save(tmp_path)
    found = load(tmp_path).predict(np.eye(5))
    expected = torch.softmax(whole.classifier.weight.detach().T, 1).numpy()
    assert np.allclose(found.probabilities, expected, atol=1e-6)
    assert np.allclose(found.embeddings, np.eye(5))


def test_inputs_are_bytes_texts_and_numbers():
    assert payload(b"ab") == b"ab" and payload("é") == "é".encode()
    assert np.load(__import__("io").BytesIO(payload([[1, 2]]))).tolist() == [[1, 2]]
    whole = learner()
    model = target_model(
        "vector", whole.modalities["vector"], whole.spec, whole.state_dict(), CLASSES
    )
    with pytest.raises(BadSample, match="not 5"):
        model.predict([np.ones(4)])
    with pytest.raises(UserError, match="no sample"):
        model.predict([])


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    whole = learner()
    model = target_model("text", whole.modalities["text"], whole.spec, whole.state_dict(), CLASSES)
    with pytest.raises(UserError, match="no exported model"):
        load(tmp_path)
    model.save(tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())

    def broken(**changes):
        (tmp_path / "model.json").write_text(json.dumps({**facts, **changes}))
        with pytest.raises(UserError) as caught:
            load(tmp_path)
        return str(caught.value)

    assert "newer format" in broken(format=99)
    assert "not of the types" in broken(classes=[1, 2])
    assert "do not fit" in broken(classes=["a", "b"])
    assert "no kind of data" in broken(target={**facts["target"], "kind": "smell"})
    wrong = {**facts["target"], "preprocessing": {"vocab": "many", "size": 3}}
    said = broken(target=wrong)
    assert "preprocessing.vocab" in said and "size" in said
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)


def test_a_trunk_that_came_from_a_language_model_needs_its_folder_no_more(tmp_path):
    whole = learner()
    spec = dataclasses.replace(whole.spec, trunk_init="/gone")
    model = target_model("text", whole.modalities["text"], spec, whole.state_dict(), CLASSES)
    model.save(tmp_path)
    assert load(tmp_path).learner.spec.trunk_init is None
