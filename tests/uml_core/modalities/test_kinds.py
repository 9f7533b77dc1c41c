"""What every kind promises, whatever its options."""

from __future__ import annotations

import dataclasses
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from uml_core.modalities import KINDS, BadSample, Modality

WIDTH = 32


def png(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Pillow.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def wav(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    samples = 0.1 * rng.standard_normal(int(rng.integers(900, 9000)))
    soundfile.write(stream, samples, 8000, format="WAV")
    return stream.getvalue()


def series(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return npy(rng.standard_normal((int(rng.integers(1, 40)), 3)))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def caption(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    words = ["red", "small", "Kreis", "नीला", "square", "三角"]
    return " ".join(rng.choice(words, int(rng.integers(1, 12)))).encode()


def vector(seed: int) -> bytes:
    return npy(np.random.default_rng(seed).standard_normal(WIDTH))


MAKE = {
    "image": ("png", png),
    "text": ("txt", caption),
    "audio": ("wav", wav),
    "sequence": ("npy", series),
    "vector": ("npy", vector),
}

# kind, options, settings it is made for
CASES = [
    ("image", {"size": 16}, "both"),
    ("image", {"size": 16, "stride": 2, "pool": False, "augment": "crop"}, "supervised"),
    ("image", {"size": 16, "augment": "shift"}, "supervised"),
    ("image", {"size": 16, "stem": "vit", "augment": "flip"}, "both"),
    ("image", {"size": 16, "stem": "vit", "pool": False, "layers": 1}, "supervised"),
    ("image", {"size": 16, "stem": "patches"}, "both"),
    ("image", {"size": 16, "stem": "patches", "class_token": True}, "supervised"),
    ("text", {}, "both"),
    ("text", {"stem": "tokens", "unit": "char_ngram"}, "both"),
    ("audio", {"sample_rate": 8000}, "both"),
    ("audio", {"sample_rate": 8000, "pool": False, "augment": "shift"}, "supervised"),
    ("audio", {"sample_rate": 11025, "stem": "patches", "normalise": "constants"}, "both"),
    ("sequence", {}, "both"),
    ("sequence", {"patch": 4}, "both"),
    ("sequence", {"stem": "conv1d", "scale": "zscore"}, "supervised"),
    ("sequence", {"stem": "conv1d", "pool": False}, "supervised"),
    ("vector", {}, "both"),
    ("vector", {"stem": "identity", "normalise": True}, "both"),
]
EVERY = [
    (k, o, s) for k, o, w in CASES for s in ("supervised", "self_supervised") if w in (s, "both")
]


def build(kind: str, options: dict) -> Modality:
    modality = KINDS[kind](KINDS[kind].Options(**options))
    suffix, make = MAKE[kind]
    return modality.with_input(modality.decode(make(0), suffix))


def items(modality: Modality, count: int) -> list[torch.Tensor]:
    suffix, make = MAKE[modality.kind]
    return [modality.decode(make(seed), suffix) for seed in range(count)]


def test_each_kind_is_registered_under_its_name_with_suffixes():
    assert list(KINDS) == ["image", "text", "audio", "sequence", "vector"]
    assert all(cls.kind == name and cls.suffixes for name, cls in KINDS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_each_option_has_a_default_and_a_sentence(kind):
    KINDS[kind].Options()
    assert all(f.metadata["help"] for f in dataclasses.fields(KINDS[kind].Options))


@pytest.mark.parametrize("setting", ["supervised", "self_supervised"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_work_in_both_settings(kind, setting):
    cls = KINDS[kind]
    assert cls.check(cls.Options(), setting=setting, width=64, heads=4) == []
    stem = build(kind, {}).stem(64, supervised=setting == "supervised")
    assert isinstance(stem, torch.nn.Module)


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_good_options_have_no_problem(kind, options, setting):
    cls = KINDS[kind]
    assert cls.check(cls.Options(**options), setting=setting, width=WIDTH, heads=4) == []


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_an_item_does_not_depend_on_its_batch_mates(kind, options, setting):
    torch.manual_seed(0)
    modality = build(kind, options)
    stem = modality.stem(WIDTH, supervised=setting == "supervised").eval()
    decoded = items(modality, 6)
    with torch.no_grad():
        together, mask = stem(*modality.collate(decoded))
        for i, item in enumerate(decoded):
            alone, own_mask = stem(*modality.collate([item]))
            assert own_mask is None
            valid = together[i] if mask is None else together[i][mask[i]]
            torch.testing.assert_close(valid, alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_tokens_have_the_width_and_training_reaches_every_weight(kind, options, setting):
    modality = build(kind, options)
    stem = modality.stem(WIDTH, supervised=setting == "supervised")
    before = {name: buffer.clone() for name, buffer in stem.named_buffers()}
    x, mask = modality.collate(items(modality, 6))
    tokens, token_mask = stem(x, mask)
    assert tokens.shape[0] == 6 and tokens.shape[2] == WIDTH and tokens.dtype == torch.float32
    assert token_mask is None or token_mask.shape == tokens.shape[:2]
    if tokens.requires_grad:  # identity has nothing to train
        (tokens**3).sum().backward()
    unused = [n for n, p in stem.named_parameters() if p.grad is None]
    assert unused == []  # data-parallel training waits for every weight
    assert all(torch.equal(before[name], buffer) for name, buffer in stem.named_buffers())
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in stem.modules())


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_no_sample_makes_more_tokens_than_its_options_say(kind, options, setting):
    bounds = {"text": {"max_tokens": 5}, "sequence": {"max_length": 13, "truncate": True}}
    bounds["audio"] = {"seconds": 0.1137}
    modality = build(kind, {**options, **bounds.get(kind, {})})
    supervised = setting == "supervised"
    x, mask = modality.collate(items(modality, 24))
    tokens, _ = modality.stem(WIDTH, supervised=supervised)(x, mask)
    most = modality.most_positions(supervised=supervised)
    # Resampled audio may be a spectrum shorter than the bound.
    assert most - (kind == "audio") <= tokens.shape[1] <= most


@pytest.mark.parametrize(
    ("kind", "options"), [(k, o) for k, o, s in EVERY if s == "self_supervised"]
)
def test_positions_of_tokens_masks_predictions_and_targets_agree(kind, options):
    modality = build(kind, options)
    x, mask = modality.collate(items(modality, 6))
    tokens, token_mask = modality.stem(WIDTH, supervised=False)(x, mask)
    prediction, target = modality.decoder(WIDTH)(tokens), modality.targets(x)
    assert tokens.shape[:2] == target.shape[:2]
    # The learner counts positions with the batch's own mask.
    assert (mask is None) == (token_mask is None)
    assert mask is None or torch.equal(mask, token_mask)
    if modality.loss == "cross_entropy":
        assert target.dtype == torch.int64 and int(target.max()) < prediction.shape[2]
    else:
        assert prediction.shape == target.shape and target.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "options"), [(k, o) for k, o, s in EVERY if s == "self_supervised" and k != "vector"]
)
def test_a_self_supervised_token_sees_its_own_position_only(kind, options):
    modality = build(kind, options)
    stem = modality.stem(WIDTH, supervised=False).eval()
    x, mask = modality.collate(items(modality, 6)[-1:])
    tokens, _ = stem(x, mask)
    assert tokens.shape[1] > 2
    # Change the last position of the input; the tokens before it must not move.
    changed = x.clone()
    if kind == "image":
        changed[:, :, -4:, -4:] = 255 - changed[:, :, -4:, -4:]
    else:
        changed[:, -1] += 1
    moved = (stem(changed, mask)[0] - tokens).abs().sum(2)[0] > 0
    assert moved.tolist() == [False] * (tokens.shape[1] - 1) + [True]


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_decoding_depends_on_its_arguments_only(kind, options, setting):
    modality = build(kind, options)
    suffix, make = MAKE[kind]
    u = np.random.default_rng(1).random(modality.num_random)
    members = [make(seed) for seed in range(8)]
    torch.manual_seed(0)
    first = [modality.decode(data, suffix, u) for data in members]
    torch.manual_seed(1)
    np.random.seed(1)
    copy = pickle.loads(pickle.dumps(modality))
    with ThreadPoolExecutor(4) as pool:
        second = list(pool.map(lambda data: copy.decode(data, suffix, u), members))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_ignores_the_augmentation(kind):
    augment = {"image": "crop", "audio": "shift"}.get(kind)
    options = {"augment": augment} if augment else {}
    suffix, make = MAKE[kind]
    plain, augmented = build(kind, {}), build(kind, options)
    assert torch.equal(plain.decode(make(3), suffix), augmented.decode(make(3), suffix))


@pytest.mark.parametrize(("kind", "options", "setting"), EVERY)
def test_coarse_copies_are_as_long_for_every_item_and_differ(kind, options, setting):
    modality = build(kind, options)
    coarse = [modality.coarse(item) for item in items(modality, 6)]
    assert {tuple(c.shape) for c in coarse} == {(len(coarse[0]),)}
    assert all(c.dtype == torch.float32 and bool(c.isfinite().all()) for c in coarse)
    assert len({tuple(c.tolist()) for c in coarse}) == 6


def test_what_coarse_copies_hold():
    def copy(kind: str, item: torch.Tensor, **options) -> list[float]:
        return KINDS[kind](KINDS[kind].Options(**options)).coarse(item).tolist()

    picture = torch.arange(3 * 16 * 16, dtype=torch.int64).view(3, 16, 16).remainder(251).byte()
    cells = picture.float().view(3, 8, 2, 8, 2).mean((2, 4))
    assert copy("image", picture, size=16) == pytest.approx(cells.flatten().tolist())
    assert copy("text", torch.tensor([1, 3, 3, 5]), vocab=6) == [0, 0.25, 0, 0.5, 0, 0.25]
    spectra = torch.arange(16.0).view(2, 8)  # 2 bands, 8 frames
    assert copy("audio", spectra, mels=2) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]
    series = torch.arange(32.0).view(16, 2)  # 16 steps of 2 numbers
    means = series.view(8, 2, 2).mean(1).T.flatten().tolist()
    assert copy("sequence", series) == means
    assert copy("vector", torch.tensor([3.0, 4.0])) == [3.0, 4.0]


FUZZ = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_bad_samples_and_nothing_worse(kind):
    modality = build(kind, {})
    suffix, make = MAKE[kind]
    good = make(1)

    @FUZZ
    @given(st.binary(max_size=300), st.integers(0, len(good)), st.integers(0, len(good)))
    def check(noise: bytes, start: int, stop: int) -> None:
        for data in (noise, good[:stop], good[:start] + noise + good[stop:]):
            try:
                item = modality.decode(data, suffix)
            except BadSample as error:
                assert str(error)
            else:
                assert torch.isfinite(item.float()).all()
                modality.collate([item, item])

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_member_is_a_bad_sample(kind):
    with pytest.raises(BadSample):
        build(kind, {}).decode(b"", MAKE[kind][0])
