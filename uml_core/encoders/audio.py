"""Audio encoders: transformers (wav2vec 2.0, HuBERT, AST, Whisper, CLAP), torchaudio pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uml_core.encoders.base import AudioEncoder, Wanted
from uml_core.encoders.vision import pooler_of, positions
from uml_core.errors import UserError
from uml_core.modalities.base import BadSample

SHORTEST = 0.1  # seconds: below, strided convolutions have nothing left


class TransformersAudio(AudioEncoder):
    """AutoModel and AutoFeatureExtractor of a folder.

    auto pooling: projected audio features of models with two towers, else the model's own pooler,
    else the mean over frames. Of speech recognisers the encoder is used.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from transformers import AutoFeatureExtractor, AutoModel

        local: dict[str, Any] = {"local_files_only": True}
        extractor = AutoFeatureExtractor.from_pretrained(found.path, **local)
        super().__init__(wanted, int(extractor.sampling_rate))
        model = AutoModel.from_pretrained(found.path, use_safetensors=True, **local)
        self.towers = hasattr(model, "get_audio_features")
        self.network = model.get_encoder() if model.config.is_encoder_decoder else model
        self.extractor = extractor
        self.preprocessing = json.loads(extractor.to_json_string())
        if wanted.pooling == "cls":
            raise UserError("--pooling cls: for audio encoders use auto, mean or pooler")
        if wanted.pooling == "auto":
            self.pooling = "projection" if self.towers else "pooler"

    def decode(self, data: bytes, suffix: str = "") -> Tensor:
        """Bytes of a file -> (samples,) at the encoder's rate. Raises BadSample."""
        return _long_enough(super().decode(data, suffix), self.sample_rate)

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, None]:
        waves = [item.numpy() for item in items]
        name = self.extractor.model_input_names[0]
        batch = self.extractor(waves, sampling_rate=self.sample_rate, return_tensors="pt")
        x, network = batch[name].to(self.device), self._any
        if self.pooling == "projection" and self.wanted.output == "pooled":
            return pooler_of(network.get_audio_features(**{name: x})), None
        tower = network.audio_model if self.towers else network
        out = tower(**{name: x})
        pooler = getattr(out, "pooler_output", None)
        if self.pooling == "pooler" and pooler is None:
            self.pooling = "mean"
        return self._reduced(positions(out.last_hidden_state), None, pooler), None


class Torchaudio(AudioEncoder):
    """A pipeline of torchaudio.pipelines with `get_model` and `sample_rate` (wav2vec 2.0 and kin).

    Pooled features are the mean over the frames of the last layer.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from torchaudio import pipelines

        bundle: Any = getattr(pipelines, found.model)
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
