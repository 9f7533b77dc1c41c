"""Audio encoders: transformers (wav2vec 2.0, HuBERT, AST, Whisper, CLAP), torchaudio pipelines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uml_core.encoders.base import AudioEncoder, Wanted
from uml_core.encoders.vision import pooler_of, positions
from uml_core.errors import UserError
from uml_core.media import sound
from uml_core.modalities.base import BadSample

SHORTEST = 0.1  # seconds: below, strided convolutions have nothing left


class TransformersAudio(AudioEncoder):
    """AutoModel and AutoFeatureExtractor of a folder.

    auto pooling: projected audio features of models with two towers, else the model's own pooler,
    else the mean over frames. Of speech recognisers the encoder is used. A clip longer than what
    the extractor takes at once goes through in windows of that length: pooled features are their
    mean, tokens those of one window after the other, without what is padding.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from transformers import AutoFeatureExtractor, AutoModel

        local: dict[str, Any] = {"local_files_only": True}
        extractor = AutoFeatureExtractor.from_pretrained(found.path, **local)
        super().__init__(wanted, int(extractor.sampling_rate))
        model = AutoModel.from_pretrained(found.path, use_safetensors=True, **local)
        self.towers = hasattr(model, "get_audio_features")
        self.network = model.get_encoder() if model.config.is_encoder_decoder else model
        if getattr(extractor, "dither", 0):
            extractor.dither = 0.0  # noise of its own for every call
        self.extractor, self.window = extractor, _window(extractor)
        self.preprocessing = json.loads(extractor.to_json_string())
        if wanted.pooling == "cls":
            raise UserError("--pooling cls: for audio encoders use auto, mean or pooler")
        if wanted.pooling == "auto":
            self.pooling = "projection" if self.towers else "pooler"

    def decode(self, data: bytes, suffix: str = "") -> Tensor:
        """Bytes of a file -> (samples,) at the encoder's rate. Raises BadSample."""
        return _long_enough(super().decode(data, suffix), self.sample_rate)

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        pieces = [piece for item in items for piece in self._pieces(item)]
        batch = self._extracted(pieces)
        heard = batch.pop("attention_mask", None)
        inputs, network = {k: v.to(self.device) for k, v in batch.items()}, self._any
        lengths = torch.tensor([len(piece) for piece in pieces], device=self.device)
        if self.pooling == "projection" and self.wanted.output == "pooled":
            rows = pooler_of(network.get_audio_features(**inputs))
            return _mean_of_pieces(rows, lengths, len(items)), None
        out = (network.audio_model if self.towers else network)(**inputs)
        pooler = getattr(out, "pooler_output", None)
        if self.pooling == "pooler" and pooler is None:
            self.pooling = "mean"
        if self.pooling == "pooler" and self.wanted.output == "pooled" and pooler is not None:
            return _mean_of_pieces(pooler.flatten(1), lengths, len(items)), None
        hidden = positions(out.last_hidden_state)
        mask = self._sounding(hidden.shape[1], heard, lengths)
        if mask is not None:
            mask = mask.reshape(len(items), -1)
        hidden = hidden.reshape(len(items), -1, hidden.shape[-1])
        return self._reduced(hidden, mask), mask

    def _pieces(self, wave: Tensor) -> list[Tensor]:
        """A clip as windows that the extractor takes whole; a last one too short is left out."""
        if self.window is None or len(wave) <= self.window:
            return [wave]
        pieces = wave.split(self.window)
        short = len(pieces[-1]) < SHORTEST * self.sample_rate
        return list(pieces[:-1] if short else pieces)

    def _extracted(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the network takes of these pieces, each extracted as if it were alone."""
        wanted: dict[str, Any] = {"sampling_rate": self.sample_rate, "return_tensors": "pt"}
        masks = []
        if hasattr(self.extractor, "n_samples"):  # pads with silence: which frames are sound?
            wanted["return_attention_mask"], masks = True, ["attention_mask"]
        kept = (self.extractor.model_input_names[0], "is_longer", *masks)
        found = []
        for piece in pieces:
            with _drawn_alike():
                batch = self.extractor(piece.numpy(), **wanted)
            found.append({name: batch[name] for name in kept if name in batch})
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _sounding(self, count: int, heard: Tensor | None, lengths: Tensor) -> Tensor | None:
        """(N, count) which positions hold sound and not padding; None where all do.

        heard: (N, frames) of the extractor, or None; lengths: (N,) samples
        """
        config = self._any.config
        if heard is not None:
            return heard[:, :: heard.shape[1] // count][:, :count].bool().to(self.device)
        if config.model_type != "audio-spectrogram-transformer":
            return None
        # Two tokens of its own, then patches: bands, and within them steps of time.
        frames = 1 + (lengths - 0.025 * self.sample_rate) // (0.01 * self.sample_rate)
        steps = 1 + (config.max_length - config.patch_size) // config.time_stride
        begin = config.time_stride * torch.arange(steps, device=self.device)
        patches = (begin < frames[:, None]).repeat(1, (count - 2) // steps)
        return torch.cat([torch.ones_like(patches[:, :2]), patches], dim=1)


def _window(extractor: Any) -> int | None:
    """Samples beyond which an extractor cuts, or picks a part at random; None = it takes all.

    One that fuses parts with a picture of the whole clip (CLAP) is given the whole.
    """
    if getattr(extractor, "truncation", None) == "fusion":
        return None
    for name in ("n_samples", "nb_max_samples"):  # Whisper, CLAP
        if hasattr(extractor, name):
            return int(getattr(extractor, name))
    if type(extractor).__name__ == "ASTFeatureExtractor":  # max_length spectra of 25 ms, every 10
        rate = extractor.sampling_rate
        return round((0.01 * (extractor.max_length - 1) + 0.025) * rate)
    return None


@contextlib.contextmanager
def _drawn_alike() -> Iterator[None]:
    """Extractors that draw from numpy's one generator draw the same for every clip inside."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _mean_of_pieces(rows: Tensor, lengths: Tensor, clips: int) -> Tensor:
    """(N, D) vectors of pieces, N / clips each, -> (clips, D), a piece counted by its samples."""
    share = lengths.view(clips, -1, 1) / lengths.view(clips, -1, 1).sum(1, keepdim=True)
    return (rows.view(clips, -1, rows.shape[-1]) * share).sum(1)


class Torchaudio(AudioEncoder):
    """A pipeline of torchaudio.pipelines with `get_model` and `sample_rate` (wav2vec 2.0 and kin).

    Pooled features are the mean over the frames of the last layer.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        bundle: Any = getattr(sound.pipelines(), found.model)
        super().__init__(wanted, int(bundle.sample_rate))
        if wanted.pooling not in ("auto", "mean"):
            raise UserError(f"--pooling {wanted.pooling}: torchaudio pipelines give the mean")
        place = {"model_dir": str(found.path.parent), "file_name": found.path.name}
        made = bundle.get_model(dl_kwargs={**place, "weights_only": True})
        # Where torchaudio normalises, it does so over the whole batch; a clip must not depend on
        # its batch mates, so that is done here clip by clip.
        self.normalise = hasattr(made, "normalize_waveform") and made.normalize_waveform
        self.network, self.pooling = made.model if self.normalise else made, "mean"
        self.preprocessing = {
            "sample_rate": self.sample_rate,
            "normalise_waveform": self.normalise,
            "bundle": found.model,
        }

    def decode(self, data: bytes, suffix: str = "") -> Tensor:
        """Bytes of a file -> (samples,) at the encoder's rate. Raises BadSample."""
        wave = _long_enough(super().decode(data, suffix), self.sample_rate)
        return torch.nn.functional.layer_norm(wave, wave.shape) if self.normalise else wave

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, None]:
        network = self._any
        layers, _ = network.extract_features(torch.stack(list(items)).to(self.device))
        return self._reduced(layers[-1], None), None


def _long_enough(wave: Tensor, rate: int) -> Tensor:
    if len(wave) < SHORTEST * rate:
        raise BadSample(f"the clip is shorter than {SHORTEST} s")
    return wave
