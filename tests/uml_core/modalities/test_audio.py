from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
import torch

from uml_core.modalities import BadSample
from uml_core.modalities.audio import Audio, Options


def encode(
    samples: np.ndarray, rate: int = 16_000, fmt: str = "WAV", sub: str | None = None
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=fmt, subtype=sub)
    return stream.getvalue()


def tone(hertz: float, seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def loudest_band(item: torch.Tensor) -> int:
    return int(item.mean(1).argmax())


@pytest.mark.parametrize(
    ("fmt", "sub"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "PCM_U8"),
        ("WAV", "ULAW"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_every_coding_gives_the_same_spectrogram(fmt, sub):
    audio = Audio(Options())
    reference = audio.decode(encode(tone(1000), sub="FLOAT"), "wav")
    item = audio.decode(encode(tone(1000), fmt=fmt, sub=sub), fmt.lower())
    assert item.shape == reference.shape == (32, 63) and item.dtype == torch.float32
    assert loudest_band(item) == loudest_band(reference)


def test_stereo_is_mixed_and_other_rates_are_resampled():
    audio = Audio(Options())
    mono = audio.decode(encode(tone(1000), sub="FLOAT"), "wav")
    sides = np.stack([2 * tone(1000), 0 * tone(1000)], 1)
    stereo = audio.decode(encode(sides, sub="FLOAT"), "wav")
    torch.testing.assert_close(stereo, mono, atol=1e-3, rtol=0)
    for rate in (8_000, 22_050, 44_100, 48_000, 44_101):
        other = audio.decode(encode(tone(1000, rate=rate), rate), "wav")
        assert abs(other.shape[1] - 63) <= 1
        assert loudest_band(other) == loudest_band(mono)


def test_the_centre_or_the_start_of_a_long_clip_is_used():
    clip = np.concatenate([tone(300), tone(3000), tone(300)])
    high = loudest_band(Audio(Options()).decode(encode(tone(3000)), "wav"))
    assert loudest_band(Audio(Options()).decode(encode(clip), "wav")) == high
    assert loudest_band(Audio(Options(cut="start")).decode(encode(clip), "wav")) < high


def test_short_clips_stay_short_and_are_masked_in_a_batch():
    audio = Audio(Options())
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    long, short = (audio.decode(encode(noise[:n]), "wav") for n in (16_000, 4_000))
    assert short.shape == (32, 16)
    x, mask = audio.collate([long, short])
    assert x.shape == (2, 63, 32)
    assert mask is not None and mask.sum(1).tolist() == [63, 16]
    grouped = Audio(Options(stem="patches"))
    x, mask = grouped.collate([long, short])
    assert x.shape == (2, 15, 4 * 32) and mask is not None and mask.sum(1).tolist() == [15, 4]
    assert torch.equal(x[0, 1].view(4, 32), long.T[4:8])


@pytest.mark.parametrize("samples", [1, 3, 100])
def test_clips_shorter_than_a_window_have_one_position(samples):
    for stem in ("conv", "patches"):
        audio = Audio(Options(stem=stem))
        item = audio.decode(encode(tone(500)[:samples]), "wav")
        assert torch.isfinite(item).all()
        x, _ = audio.collate([item])
        assert audio.stem(16, supervised=True)(x, None)[0].shape == (1, 1, 16)


def test_silence_is_finite():
    for normalise in ("clip", "constants"):
        item = Audio(Options(normalise=normalise)).decode(encode(np.zeros(8000)), "wav")
        assert torch.isfinite(item).all()


def test_per_clip_normalisation_takes_out_the_loudness():
    rng = np.random.default_rng(0)
    noise = 0.3 * rng.standard_normal(16_000)
    clip, constants = Audio(Options()), Audio(Options(normalise="constants"))
    loud, quiet = encode(noise, sub="FLOAT"), encode(noise / 10, sub="FLOAT")
    torch.testing.assert_close(
        clip.decode(loud, "wav"), clip.decode(quiet, "wav"), atol=0.1, rtol=0
    )
    drop = constants.decode(loud, "wav") - constants.decode(quiet, "wav")
    assert float(drop.mean()) == pytest.approx(np.log(100) / 4.5, abs=0.02)


def test_the_shift_is_a_move_in_time_by_the_uniform():
    audio = Audio(Options(augment="shift", max_shift=0.16, normalise="constants"))
    rng = np.random.default_rng(0)
    data = encode(0.1 * rng.standard_normal(16_000), sub="FLOAT")
    still = audio.decode(data, "wav", np.array([0.5]))
    assert torch.equal(still, audio.decode(data, "wav"))
    later = audio.decode(data, "wav", np.array([0.0]))  # starts 0.16 s = 10 spectra before the clip
    assert later.shape == still.shape
    torch.testing.assert_close(later[:, 13:60], still[:, 3:50], atol=1e-4, rtol=0)
    earlier = audio.decode(data, "wav", np.array([1.0]))
    torch.testing.assert_close(earlier[:, 3:50], still[:, 13:60], atol=1e-4, rtol=0)


def test_the_length_cap_is_checked_on_the_header():
    with pytest.raises(BadSample, match=r"2\.0 s, more than max_seconds 1\.5"):
        Audio(Options(max_seconds=1.5)).decode(encode(tone(500, 2)), "wav")
    Audio(Options(max_seconds=2)).decode(encode(tone(500, 2)), "wav")


def test_senseless_headers_are_refused():
    data = bytearray(encode(tone(500)))
    data[24:28] = struct.pack("<I", 4_000_000_000)
    with pytest.raises(BadSample):
        Audio(Options()).decode(bytes(data), "wav")
    with pytest.raises(BadSample, match="empty"):
        Audio(Options()).decode(encode(np.zeros(0)), "wav")
    with pytest.raises(BadSample, match="NaN"):
        Audio(Options()).decode(encode(np.full(900, np.nan), sub="FLOAT"), "wav")


def test_a_cut_off_flac_is_a_bad_sample_or_shorter_never_a_crash():
    rng = np.random.default_rng(0)
    data = encode(0.1 * rng.standard_normal(16_000), fmt="FLAC")
    for end in range(10, len(data), 997):
        try:
            item = Audio(Options()).decode(data[:end], "flac")
        except BadSample:
            continue
        assert torch.isfinite(item).all()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("mels", [16, 32, 64, 128])
def test_no_mel_band_is_empty(rate, mels):
    audio = Audio(Options(sample_rate=rate, mels=mels))
    assert bool((audio._mel.fb.sum(0) > 0).all())


def test_problems_are_sentences_that_say_what_to_do():
    def check(setting: str, **options: object) -> list[str]:
        return Audio.check(Options(**options), setting=setting, width=64, heads=4)

    assert "stem: patches" in check("self_supervised", stem="conv")[0]
    assert check("self_supervised", stem="patches") == []
    assert len(check("supervised", sample_rate=0, seconds=0, mels=0, patch=0)) == 4


@pytest.mark.parametrize("options", [{}, {"normalise": "constants", "augment": "shift"}])
def test_clips_decoded_together_are_those_decoded_alone(options):
    audio, rng = Audio(Options(**options)), np.random.default_rng(0)
    clips = [encode(rng.uniform(-0.5, 0.5, n)) for n in (16_000, 9_000, 16_000, 40_000, 100)]
    samples = [(clip, "wav", rng.random(1)) for clip in clips]
    samples[3:3] = [(b"RIFF rubbish", "wav", rng.random(1)), (encode(np.zeros((0,))), "wav", None)]
    together = audio.decode_all(samples)
    assert [isinstance(item, BadSample) for item in together] == [0, 0, 0, 1, 1, 0, 0]
    assert "cannot be decoded" in str(together[3]) and "empty" in str(together[4])
    for sample, item in zip(samples, together, strict=True):
        if isinstance(item, torch.Tensor):
            torch.testing.assert_close(item, audio.decode(*sample), rtol=1e-5, atol=1e-5)
            assert item.untyped_storage().nbytes() == item.nbytes  # holds no other clip's memory
