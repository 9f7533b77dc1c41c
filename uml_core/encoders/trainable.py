"""A pretrained vision encoder as the stem of a modality, trained with everything else.

Full fine-tuning (paper 3.3) or LoRA; its weights come from a folder or cache of transformers, its
size and pixel statistics from its own configuration. `train.lr_factors` gives it a rate of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uml_core.encoders.base import Wanted
from uml_core.encoders.opening import Located, check_package, locate, no_bars
from uml_core.encoders.vision import TransformersVision, seeing_all
from uml_core.errors import UserError

_bare: ContextVar[bool] = ContextVar("_bare", default=False)


@contextlib.contextmanager
def architecture_only() -> Iterator[None]:
    """Encoders that are built inside have no pretrained weights: others are loaded over them."""
    token = _bare.set(True)
    try:
        yield
    finally:
        _bare.reset(token)


class EncoderStem(nn.Module):
    """Pixels -> pretrained network -> one token of the model's width.

    options  of kind `image`: encoder, tune, lora_rank, recompute, size, mean, std
    The projection has no bias (paper 2.3: the linear P of supervised UML).
    """

    def __init__(self, options: Any, normalise: nn.Module, width: int) -> None:
        super().__init__()
        self.normalise = normalise
        self._how = _Vision(_found(options.encoder))
        self._frozen = options.tune == "frozen"
        network: Any = self._how.network
        features = _width(network.config)
        network.requires_grad_(options.tune == "full")
        for name, parameter in network.named_parameters():
            if name.endswith("mask_token"):  # only masked pre-training uses it
                parameter.requires_grad_(False)
        if options.recompute:
            network.gradient_checkpointing_enable({"use_reentrant": False})
            if options.tune == "lora":
                network.enable_input_require_grads()
        if options.tune == "lora":
            from peft import LoraConfig, get_peft_model

            rank = options.lora_rank
            wrapped = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            network = get_peft_model(network, wrapped)
        self.network = self._how.network = network
        self.projection = nn.Linear(features, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        """x (B, 3, S, S) uint8 -> tokens (B, 1, W)."""
        features = self._how.vectors(self.normalise(x))
        return self.projection(features).unsqueeze(1), None

    def train(self, mode: bool = True) -> EncoderStem:
        """A frozen network stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.network.eval()
        return self

    def save_architecture(self, folder: Path) -> None:
        """The configuration, from which the network is built again without its weights."""
        network: Any = self.network
        network.config.save_pretrained(folder)
        self._how.processor.save_pretrained(folder)


class _Vision(TransformersVision):
    """Of models with two towers the picture tower; parts that nothing uses are gone."""

    def __init__(self, found: Located) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        no_bars()
        if _bare.get() or torch.empty(0).is_meta:
            self.wanted, self.pooling = Wanted(), "auto"
            config = AutoConfig.from_pretrained(found.path, local_files_only=True)
            self._build(AutoModel.from_config(config))
            self.processor = AutoImageProcessor.from_pretrained(found.path, local_files_only=True)
        else:
            super().__init__(found, Wanted())
            self._build(self.network)

    def _build(self, network: Any) -> None:
        if hasattr(network, "vision_model"):
            network = network.vision_model
        cls = any(name.endswith("cls_token") for name, _ in network.named_parameters())
        if cls and getattr(network, "pooler", None) is not None:
            network.pooler = None
        self.network, self.towers = seeing_all(network), False
        self.pooling = "cls" if cls else "pooler"

    def vectors(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, D)."""
        return self._features(x)[0]  # type: ignore[arg-type]


def _found(name: str) -> Located:
    """The encoder of a recipe; in `architecture_only` its configuration is enough."""
    path = Path(name).expanduser()
    if _bare.get() and (path / "config.json").is_file():
        return Located("transformers", name, path)
    found = locate(name)
    if found.scheme != "transformers":
        raise UserError(
            f"encoder: {name} is of {found.scheme}; encoders that train are those of transformers"
        )
    return found


def own_preprocessing(options: Any) -> Any:
    """Options of kind `image` with the size and statistics of their encoder."""
    from transformers import AutoImageProcessor

    path = _found(options.encoder).path
    if options.tune == "lora":
        check_package("peft")
    try:
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises a dozen kinds
        raise UserError(f"encoder: {path} has no image processor of transformers") from error
    size = getattr(processor, "crop_size", None) or processor.size
    side = size.get("height") or size.get("shortest_edge")
    if not isinstance(side, int):
        raise UserError(f"encoder: {options.encoder} does not say which size it takes")
    return replace(
        options,
        encoder=str(path),  # workers run in other folders
        size=side,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def _width(config: Any) -> int:
    """Features per position."""
    found = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
    return int(found)
