"""Embedded worlds: the same everywhere, balanced, unpaired, and every modality tells its class."""

from __future__ import annotations

import colorsys
import hashlib
import io
import re
from collections import Counter

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from uml_core.errors import UserError
from uml_core.modalities import KINDS
from uml_core.worlds import SPLITS, WORLDS, Drawn, ShapesWorld, open_world
from uml_core.worlds.captions import COLOUR_WORDS, FILLING_NOUNS, FILLINGS, NOUNS
from uml_core.worlds.digits import INK, scans, spellings
from uml_core.worlds.pictures import HUES, Look
from uml_core.worlds.shapes import COLOURS, PATTERNS, SHAPES, attributes
from uml_core.worlds.tones import PITCHES, Sound

SHAPES_WORLD = open_world("shapes")
DIGITS = open_world("digits")
STREAMS = [
    (world, modality, split)
    for world in (SHAPES_WORLD, DIGITS)
    for modality in world.kinds
    for split in SPLITS
]
NAMES = [f"{world.name}-{modality}-{split}" for world, modality, split in STREAMS]

# Of decoded samples: encoders (zlib) may differ between machines, what they hold may not.
GOLDEN = {
    ("shapes", "image", "train"): "55aba13974f51171",
    ("shapes", "image", "test"): "fb82b44838df6c28",
    ("shapes", "text", "train"): "300ddb1acc023591",
    ("shapes", "text", "test"): "ed8b6a0f6144a6a9",
    ("shapes", "audio", "train"): "b2575f4e10cc7532",
    ("shapes", "audio", "test"): "136a8120d09ec6aa",
    ("digits", "image", "train"): "eca7aa5608dac257",
    ("digits", "image", "test"): "dd5182c1ccdb686d",
    ("digits", "sequence", "train"): "813eff3735010c87",
    ("digits", "sequence", "test"): "b054edc59ee796ca",
    ("digits", "text", "train"): "d218f42b147d040e",
    ("digits", "text", "test"): "f9794568b94e2a6e",
}


def pixels(drawn: list[Drawn]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(d.data))) for d in drawn])


def waves(drawn: list[Drawn]) -> np.ndarray:
    return np.stack([soundfile.read(io.BytesIO(d.data), dtype="int16")[0] for d in drawn])


def labels(drawn: list[Drawn]) -> np.ndarray:
    return np.array([d.label for d in drawn])


def content(d: Drawn) -> bytes:
    if d.suffix == "png":
        return pixels([d]).tobytes()
    return waves([d]).tobytes() if d.suffix == "wav" else d.data


def digest(drawn: list[Drawn]) -> str:
    whole = hashlib.sha256()
    for d in drawn:
        whole.update(f"{d.key}.{d.suffix} {d.label} {d.source} ".encode() + content(d))
    return whole.hexdigest()[:16]


# ------------------------------------------------------------------------- every world


@pytest.mark.parametrize(("world", "modality", "split"), STREAMS, ids=NAMES)
def test_the_samples_are_those_of_every_other_machine(world, modality, split):
    drawn = list(world.sample(modality, split, 40, seed=900))
    assert digest(drawn) == GOLDEN[world.name, modality, split]


@pytest.mark.parametrize(("world", "modality", "split"), STREAMS, ids=NAMES)
def test_labels_are_balanced_and_shuffled(world, modality, split):
    classes = len(world.class_names)
    found = labels(list(world.sample(modality, split, 3 * classes, seed=900)))
    assert Counter(found.tolist()) == dict.fromkeys(range(classes), 3)
    assert (found[:classes] != found[classes : 2 * classes]).any()
    assert (found[:classes] != np.arange(classes)).any()


@pytest.mark.parametrize(("world", "modality", "split"), STREAMS, ids=NAMES)
def test_parts_of_a_stream_are_the_stream(world, modality, split):
    """Shards can be made in parallel, and a larger draw begins with the smaller one."""
    n = 40 if world is DIGITS else 270  # beyond one chunk
    whole = list(world.sample(modality, split, n, seed=900))
    parts = [list(world.sample(modality, split, 7, 900, start)) for start in (0, 7, n - 7)]
    assert parts == [whole[:7], whole[7:14], whole[n - 7 :]]


@pytest.mark.parametrize(("world", "modality", "split"), STREAMS, ids=NAMES)
def test_another_seed_is_other_data(world, modality, split):
    first, second = (list(world.sample(modality, split, 40, seed)) for seed in (900, 901))
    assert labels(first).tolist() != labels(second).tolist()
    shared = {content(d) for d in first} & {content(d) for d in second}
    assert len(shared) <= 40 * (0.5 if world is DIGITS else 0.05)


@pytest.mark.parametrize("world", [SHAPES_WORLD, DIGITS], ids=["shapes", "digits"])
def test_modalities_and_splits_are_independent_draws(world):
    """Equal rows of two streams show the same class as often as chance has it."""
    drawn = {
        (m, s): labels(list(world.sample(m, s, 40, seed=seed)))
        for m in world.kinds
        for s in SPLITS
        for seed in [900]
    }
    streams = list(drawn.values())
    for i, a in enumerate(streams):
        for b in streams[i + 1 :]:
            assert (a == b).mean() < 0.35


@pytest.mark.parametrize("world", [SHAPES_WORLD, DIGITS], ids=["shapes", "digits"])
def test_test_content_is_not_in_train(world):
    for modality in world.kinds:
        train, test = (
            list(world.sample(modality, split, min(n, world.default_size(modality, split))))
            for split, n in (("train", 960), ("test", 240))
        )
        known = {content(d) for d in train}
        assert len(known) >= 0.99 * len(train)
        assert np.mean([content(d) in known for d in test]) <= 0.01


@pytest.mark.parametrize(("world", "modality", "split"), STREAMS, ids=NAMES)
def test_the_modality_of_its_kind_decodes_it(world, modality, split):
    cls = KINDS[world.kinds[modality]]
    kind = cls(cls.Options())
    drawn = list(world.sample(modality, split, 12, seed=900))
    assert all(d.suffix in cls.suffixes for d in drawn)
    x, _ = kind.collate([kind.decode(d.data, d.suffix) for d in drawn])
    assert len(x) == 12


def test_bad_requests_are_told_all_at_once():
    with pytest.raises(UserError) as error:
        SHAPES_WORLD.sample("imge", "tst", -1, seed=-2)
    assert len(error.value.problems) == 4
    assert "did you mean 'image'" in error.value.problems[0]
    with pytest.raises(UserError, match="holds 600 samples"):
        DIGITS.sample("image", "train", 601)
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        open_world("shape")
    assert set(WORLDS) == {"shapes", "digits"}


# ------------------------------------------------------------------------- shapes world


def test_class_names_follow_the_attributes():
    shape, colour, pattern = attributes(np.arange(48))
    names = [
        f"{COLOURS[c]} {PATTERNS[p]} {SHAPES[s]}"
        for s, c, p in zip(shape, colour, pattern, strict=True)
    ]
    assert tuple(names) == SHAPES_WORLD.class_names
    assert len(set(names)) == 48
    assert SHAPES_WORLD.default_size("image", "test") >= 2000


def test_picture_and_clip_have_the_size_that_was_asked_for():
    world = ShapesWorld(Look(size=40), Sound(rate=4000, seconds=0.5))
    assert pixels(list(world.sample("image", "test", 2))).shape == (2, 40, 40, 3)
    assert pixels(list(SHAPES_WORLD.sample("image", "test", 2))).shape == (2, 24, 24, 3)
    with soundfile.SoundFile(io.BytesIO(next(world.sample("audio", "test", 1)).data)) as clip:
        assert (clip.samplerate, clip.frames, clip.channels) == (4000, 2000, 1)
        assert clip.subtype == "PCM_16"


def test_a_larger_picture_shows_the_same_scene():
    quiet = [ShapesWorld(Look(size=size, noise=0)) for size in (24, 48)]
    small, large = (pixels(list(w.sample("image", "train", 30))).astype(float) for w in quiet)
    halved = large.reshape(30, 24, 2, 24, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 8


@pytest.fixture(scope="module")
def pictures():
    drawn = list(SHAPES_WORLD.sample("image", "train", 1440, seed=900))
    return pixels(drawn).astype(np.float32) / 255, attributes(labels(drawn))


def test_hue_tells_the_colour(pictures):
    x, (_, colour, _) = pictures
    hue = np.array([colorsys.rgb_to_hsv(*ink)[0] for ink in x[:, 8:16, 8:16].mean((1, 2))])
    away = np.abs((hue[:, None] - np.array(HUES) + 0.5) % 1 - 0.5)
    assert (away.argmin(1) == colour).mean() > 0.95


def test_local_contrast_tells_the_pattern(pictures):
    x, (_, _, pattern) = pictures
    middle = x.mean(3)[:, 7:17, 7:17]
    contrast = np.stack([np.abs(np.diff(middle, axis=a)).mean((1, 2)) for a in (1, 2)], 1)
    oracle = KNeighborsClassifier(9).fit(contrast[:720], pattern[:720])
    assert oracle.score(contrast[720:], pattern[720:]) > 0.9


def test_the_silhouette_tells_the_shape(pictures):
    x, (shape, _, _) = pictures
    difference = np.abs(x - x[:, :3, :3].mean((1, 2), keepdims=True)).max(3)
    mask = (difference / difference.max((1, 2), keepdims=True)).reshape(len(x), -1)
    oracle = LogisticRegression(C=0.03, max_iter=200).fit(mask[:960], shape[:960])
    assert oracle.score(mask[960:], shape[960:]) > 0.7  # chance 0.25


def test_words_tell_all_attributes():
    """Each caption names exactly one value of each attribute, and it is the class's."""
    drawn = list(SHAPES_WORLD.sample("text", "train", 960, seed=900))
    texts = [d.data.decode() for d in drawn]
    fillings = [a + b for a, b in zip(FILLINGS, FILLING_NOUNS, strict=True)]
    tables = zip((NOUNS, COLOUR_WORDS, fillings), attributes(labels(drawn)), strict=True)
    for table, truth in tables:
        patterns = [re.compile(rf"\b({'|'.join(words)})\b") for words in table]
        named = [[i for i, p in enumerate(patterns) if p.search(text)] for text in texts]
        assert named == [[t] for t in truth]
    assert len(set(texts)) > 0.98 * len(texts)


@pytest.fixture(scope="module")
def clips():
    drawn = list(SHAPES_WORLD.sample("audio", "train", 480, seed=900))
    return waves(drawn) / 32768, attributes(labels(drawn))


@pytest.fixture(scope="module")
def harmonics(clips):
    """(N, candidates, 5) spectrum at the first five multiples of candidate pitches."""
    x, _ = clips
    spectrum = np.abs(np.fft.rfft(x * np.hanning(x.shape[1]), n=8192))
    candidates = np.geomspace(170, 680, 200)
    at = np.rint(candidates[:, None] * np.arange(1, 6) * 8192 / 8000).astype(int)
    near = np.stack([spectrum[:, at + shift] for shift in (-2, -1, 0, 1, 2)])
    return candidates, near.max(0)


def test_pitch_tells_the_colour(clips, harmonics):
    candidates, strength = harmonics
    pitch = candidates[(np.sqrt(strength) * [1, 0.6, 0.6, 0.6, 0.6]).sum(2).argmax(1)]
    heard = np.abs(np.log2(pitch[:, None] / np.array(PITCHES))).argmin(1)
    assert (heard == clips[1][1]).mean() > 0.95


def test_timbre_tells_the_shape(clips, harmonics):
    shape, colour, _ = clips[1]
    candidates, strength = harmonics
    # The colour is given away to look at timbre alone.
    band = np.abs(np.log2(candidates / np.array(PITCHES)[colour][:, None])) < 0.25
    loudness = np.where(band, strength.sum(2), 0)
    partials = strength[np.arange(len(strength)), loudness.argmax(1)]
    partials /= partials.sum(1, keepdims=True)
    oracle = KNeighborsClassifier(5).fit(partials[:240], shape[:240])
    assert oracle.score(partials[240:], shape[240:]) > 0.9


def test_envelope_tells_the_pattern(clips):
    x, (_, _, pattern) = clips
    envelope = np.abs(x).reshape(len(x), -1, 80).mean(2)
    on = envelope > 0.4 * envelope.max(1, keepdims=True)
    rhythm = np.stack([on.mean(1), np.abs(np.diff(on.astype(int), axis=1)).sum(1)], 1)
    oracle = KNeighborsClassifier(5).fit(rhythm[:240], pattern[:240])
    assert oracle.score(rhythm[240:], pattern[240:]) > 0.85


# ------------------------------------------------------------------------- digits world


@pytest.mark.parametrize("seed", [0, 900])
def test_no_scan_serves_twice(seed):
    drawn = [
        d
        for modality in ("image", "sequence")
        for split in SPLITS
        for d in DIGITS.sample(modality, split, DIGITS.default_size(modality, split), seed)
    ]
    assert len({d.source for d in drawn}) == len(drawn) == 1740


def test_digits_are_the_scans():
    images, truth = scans()
    for d in DIGITS.sample("image", "test", 50, seed=900):
        number = int(d.source.split("-")[1])
        assert truth[number] == d.label
        np.testing.assert_array_equal(np.rint(pixels([d])[0] / 255 * INK), images[number])
    for d in DIGITS.sample("sequence", "train", 50, seed=900):
        number = int(d.source.split("-")[1])
        series = np.load(io.BytesIO(d.data), allow_pickle=False)
        assert truth[number] == d.label
        assert series.dtype == np.float32
        assert series[0].any()
        assert series[-1].any()
        assert series.sum() * INK == pytest.approx(images[number].sum())


def test_number_words_are_those_of_their_class():
    words = spellings()
    assert not set.intersection(*map(set, words))
    for split in SPLITS:
        for d in DIGITS.sample("text", split, DIGITS.default_size("text", split)):
            assert d.data.decode() in words[d.label]
    assert "three" in words[3]
    assert "acht" in words[8]


# --------------------------------------------------------------------------------- pairs


def test_pairs_of_shapes_share_class_and_key_and_nothing_of_the_splits():
    pairs = list(SHAPES_WORLD.pairs(("image", "text"), 300, seed=0))
    assert len(pairs) == 300 and len({one.key for one, _ in pairs}) == 300
    assert all((a.key, a.label) == (b.key, b.label) for a, b in pairs)
    assert {(a.suffix, b.suffix) for a, b in pairs} == {("png", "txt")}
    assert Counter(a.label for a, _ in pairs).most_common()[0][1] <= 7  # balanced
    assert [p[1].data for p in SHAPES_WORLD.pairs(("image", "text"), 20)] == [
        p[1].data for p in pairs[:20]
    ]
    used = {d.data for split in SPLITS for d in SHAPES_WORLD.sample("image", split, 2400)}
    assert not used & {a.data for a, _ in pairs}
    word = re.compile("|".join(COLOUR_WORDS[COLOURS.index("red")]))
    colours = {bool(word.search(b.data.decode())) for a, b in pairs if attributes(a.label)[1] == 0}
    assert colours == {True}


def test_pairs_of_digits_are_one_scan_seen_twice():
    pairs = list(DIGITS.pairs(("sequence", "image"), 1000, seed=0))
    assert len(pairs) == 400  # the pictures' test scans
    assert all(a.source == b.source and a.label == b.label for a, b in pairs)
    seen = {d.source for d in DIGITS.sample("image", "test", 400)}
    assert {a.source for a, _ in pairs} == seen
    columns = np.load(io.BytesIO(pairs[0][0].data))
    picture = np.asarray(Image.open(io.BytesIO(pairs[0][1].data)), np.float64)
    inked = picture.T[picture.T.any(1)]
    np.testing.assert_allclose(columns[columns.any(1)], inked / 255, atol=0.01)


def test_a_world_without_such_pairs_says_so():
    with pytest.raises(UserError, match="digits cannot show one thing as image and text"):
        DIGITS.pairs(("image", "text"), 10)
    with pytest.raises(UserError, match="shapes cannot"):
        SHAPES_WORLD.pairs(("image", "smell"), 10)
