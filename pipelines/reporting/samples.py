"""A few inputs of each modality as a person can see them, kept beside a result.

samples/samples.json   modality -> [{"class", "file" | "text", "audio"}]
samples/*.png          pictures, spectrograms, curves; samples/*.wav short recordings
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
from matplotlib.figure import Figure
from PIL import Image

from pipelines.files import write_text

FOLDER = "samples"
_PER_MODALITY = 6
_SIDE = 168  # pixels of a picture's longer side
_AUDIO_BYTES = 256 << 10  # longer recordings are shown and not carried along
_TEXT_CHARACTERS = 280
_LINE, _GUIDE = "#3b82c4", "#8a93a0"  # readable on white and on black

Sample = tuple[bytes, str, str]  # payload, suffix, class name


def save_samples(out: Path, samples: Mapping[str, Iterable[Sample]]) -> None:
    """Writes up to 6 samples of each modality below `out`; what cannot be shown is left out.

    samples: modality -> (payload, lower-case suffix, class name or "").
    """
    folder = Path(out) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, list[dict[str, str]]] = {}
    for modality, given in samples.items():
        entries = shown[modality] = []
        for payload, suffix, class_name in list(given)[:_PER_MODALITY]:
            stem = f"{re.sub(r'[^A-Za-z0-9]+', '-', modality)}-{len(entries)}"
            try:
                entry = _show(payload, suffix, folder / stem)
            except Exception:  # decoders raise anything; a bad sample must not end a finished run
                continue
            entries.append({"class": class_name, **entry})
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    write_text(folder / "samples.json", text + "\n")


def _show(payload: bytes, suffix: str, path: Path) -> dict[str, str]:
    if suffix == "txt":
        text = " ".join(payload.decode("utf-8").split())
        cut = f"{text[:_TEXT_CHARACTERS]}…" if len(text) > _TEXT_CHARACTERS else text
        return {"text": cut}
    picture = path.with_suffix(".png")
    if suffix in ("wav", "flac", "ogg"):
        _spectrogram(payload, picture)
        if len(payload) > _AUDIO_BYTES:
            return {"file": picture.name}
        sound = path.with_suffix(f".{suffix}")
        sound.write_bytes(payload)
        return {"file": picture.name, "audio": sound.name}
    if suffix in ("npy", "npz"):
        _array(payload, picture)
    else:
        _picture(payload, picture)
    return {"file": picture.name}


def _picture(payload: bytes, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(payload))
        side = max(image.size)
        if side <= _SIDE:  # whole pixels, so that small pictures stay crisp
            factor, how = _SIDE // side, Image.Resampling.NEAREST
            size = (image.width * factor, image.height * factor)
        else:
            how = Image.Resampling.LANCZOS
            size = (
                max(1, round(image.width * _SIDE / side)),
                max(1, round(image.height * _SIDE / side)),
            )
        image.convert("RGB").resize(size, how).save(path)


def _spectrogram(payload: bytes, path: Path) -> None:
    wave, rate = soundfile.read(io.BytesIO(payload), dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)[: 30 * rate]
    length = min(512, max(16, len(mono) // 32))
    fig, ax = _axes()
    with np.errstate(divide="ignore"):
        power, _, _, _ = ax.specgram(mono, NFFT=length, Fs=rate, noverlap=length // 2)
    top = 10 * np.log10(power.max() + 1e-12)
    ax.images[0].set(cmap="magma", clim=(top - 70, top))
    fig.savefig(path, dpi=100)


def _array(payload: bytes, path: Path) -> None:
    loaded = np.load(io.BytesIO(payload), allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        loaded = loaded["x" if "x" in loaded.files else loaded.files[0]]
    values = np.asarray(loaded, dtype=np.float32)
    fig, ax = _axes()
    if values.ndim == 1:
        ax.bar(np.arange(len(values)), values, width=1.0, color=_LINE)
        ax.axhline(0, color=_GUIDE, lw=0.8)
    elif values.ndim == 2 and values.shape[1] <= 4:
        for i, column in enumerate(values.T):
            ax.plot(_unit(column) - 1.15 * i, lw=1.4, color=_LINE)
    else:
        flat = values.reshape(len(values), -1)
        ax.imshow(flat.T, aspect="auto", cmap="viridis", interpolation="nearest")
    fig.savefig(path, dpi=100, transparent=True)


def _unit(column: np.ndarray) -> np.ndarray:
    low, high = float(column.min()), float(column.max())
    return (column - low) / (high - low) if high > low else np.zeros_like(column)


def _axes() -> tuple[Figure, mpl.axes.Axes]:
    fig = Figure(figsize=(1.68, 1.26))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    return fig, ax
