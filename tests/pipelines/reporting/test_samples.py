"""Sample inputs of every kind as pictures, texts and sounds."""

from __future__ import annotations

import io
import json

import numpy as np
import soundfile
from PIL import Image

from pipelines.reporting import samples
from pipelines.reporting.samples import save_samples


def png(color: tuple[int, int, int], size: int = 8) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (size, size), color)
    image.putpixel((1, 0), (255, 255, 255))
    image.save(out, "PNG")
    return out.getvalue()


def wav(seconds: float) -> bytes:
    out = io.BytesIO()
    t = np.arange(int(8000 * seconds)) / 8000
    soundfile.write(out, 0.3 * np.sin(2 * np.pi * 440 * t), 8000, format="WAV")
    return out.getvalue()


def npy(*shape: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).normal(size=shape))
    return out.getvalue()


def test_samples_of_every_kind(tmp_path):
    given = {
        "image": [(png((0, 0, 9), 8), "png", "a"), (png((0, 0, 9), 400), "png", "b")] * 4,
        "text": [(b"one\n  two", "txt", "a"), (b"x" * 999, "txt", "b")],
        "audio": [(wav(0.5), "wav", "a"), (wav(20.0), "wav", "long")],
        "pen trace": [(npy(40, 3), "npy", ""), (npy(30, 12), "npy", "")],
        "features": [(npy(64), "npy", ""), (npy(8), "npz", "broken"), (b"junk", "npy", "broken")],
    }
    save_samples(tmp_path, given)
    folder = tmp_path / samples.FOLDER
    shown = json.loads((folder / "samples.json").read_text())
    assert {name: len(entries) for name, entries in shown.items()} == {
        "image": 6,
        "text": 2,
        "audio": 2,
        "pen trace": 2,
        "features": 2,
    }
    small = Image.open(folder / shown["image"][0]["file"])
    assert small.size == (168, 168)
    assert {color for _, color in small.getcolors()} == {(0, 0, 9), (255, 255, 255)}
    assert Image.open(folder / shown["image"][1]["file"]).size == (168, 168)
    assert shown["text"][0] == {"class": "a", "text": "one two"}
    assert len(shown["text"][1]["text"]) == 281
    assert (folder / shown["audio"][0]["audio"]).read_bytes() == wav(0.5)
    assert "audio" not in shown["audio"][1]
    assert (folder / shown["pen trace"][0]["file"]).name == "pen-trace-0.png"


def test_a_silent_recording_has_a_picture(tmp_path):
    out = io.BytesIO()
    soundfile.write(out, np.zeros(4000), 8000, format="WAV")
    save_samples(tmp_path, {"audio": [(out.getvalue(), "wav", "silence")]})
    assert (tmp_path / samples.FOLDER / "audio-0.png").is_file()
