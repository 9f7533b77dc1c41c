"""Vision encoders: transformers (also CLIP's picture tower), timm, torchvision.

Preprocessing is the encoder's own: image processor, data configuration, weights' transforms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from uml_core.encoders.base import ImageEncoder, Wanted
from uml_core.errors import UserError


class TransformersVision(ImageEncoder):
    """AutoModel and AutoImageProcessor of a folder.

    auto pooling: models of two towers give their projected picture features; others the class token
    where they have one, else their own pooler, else the mean over positions.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from transformers import AutoImageProcessor, AutoModel

        super().__init__(wanted)
        local: dict[str, Any] = {"local_files_only": True}
        network = AutoModel.from_pretrained(found.path, use_safetensors=True, **local)
        self.network = seeing_all(network)
        self.processor = AutoImageProcessor.from_pretrained(found.path, **local)
        self.preprocessing = json.loads(self.processor.to_json_string())
        self.towers = hasattr(self.network, "get_image_features")
        names = [name for name, _ in self.network.named_parameters()]
        if wanted.pooling == "auto":
            cls = any(name.endswith("cls_token") for name in names)
            self.pooling = "projection" if self.towers else "cls" if cls else "pooler"

    def prepare(self, pixels: Tensor) -> Tensor:
        return self.processor(
            images=pixels, return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"][0]

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, None]:
        x, network = torch.stack(list(items)).to(self.device), self._any
        if self.pooling == "projection" and self.wanted.output == "pooled":
            return pooler_of(network.get_image_features(pixel_values=x)), None
        tower = network.vision_model if self.towers else network
        out = tower(pixel_values=x, **_in_order(tower, len(x)))
        hidden = positions(out.last_hidden_state)
        pooler = getattr(out, "pooler_output", None)
        if self.pooling == "pooler" and pooler is None:
            self.pooling = "mean"
        return self._reduced(hidden, None, pooler), None


class Timm(ImageEncoder):
    """A folder that timm wrote (`save_for_hf`), with its pretrained_cfg.

    auto pooling: what the model's own pooling gives before the classifier.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        import timm
        from timm.data import create_transform, resolve_data_config

        super().__init__(wanted)
        _no_choice(found, wanted)
        network: Any = timm.create_model(f"local-dir:{found.path}", pretrained=True, num_classes=0)
        self.network, self.pooling = network, "own"
        config = resolve_data_config({}, model=network)
        self.preprocessing = json.loads(json.dumps(config))
        self.transform = create_transform(**config)

    def prepare(self, pixels: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import to_pil_image

        return self.transform(to_pil_image(pixels))

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, None]:
        x = torch.stack(list(items)).to(self.device)
        network = self._any
        if self.wanted.output == "tokens":
            return positions(network.forward_features(x)), None
        return network(x), None


class Torchvision(ImageEncoder):
    """A model of torchvision without its last linear layer; transforms of its default weights."""

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from torchvision.models import get_model, get_model_weights

        super().__init__(wanted)
        _no_choice(found, wanted)
        if wanted.output == "tokens":
            raise UserError(f"--encoder {found.name}: torchvision gives pooled features only")
        network = get_model(found.model, weights=None)
        network.load_state_dict(tensors(found.path))
        name = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())
        self.network, self.pooling = network, "own"
        self.transform = next(iter(get_model_weights(found.model))).DEFAULT.transforms()
        self.preprocessing = {k: _plain(v) for k, v in vars(self.transform).items() if k[0] != "_"}

    def prepare(self, pixels: Tensor) -> Tensor:
        return self.transform(pixels)

    def _features(self, items: Sequence[Tensor]) -> tuple[Tensor, None]:
        return self.network(torch.stack(list(items)).to(self.device)).flatten(1), None


def tensors(path: Any) -> dict[str, Tensor]:
    """A state dict of a file, tensors of any shape.

    Of safetensors, or of what torch reads without running code.
    """
    if str(path).endswith(".safetensors"):
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def seeing_all(network: Any) -> Any:
    """The network, which hides no patch: masked autoencoders hide most of them in any mode."""
    if hasattr(network.config, "mask_ratio"):
        network.config.mask_ratio = 0.0
    return network


def _in_order(network: Any, count: int) -> dict[str, Tensor]:
    """What keeps a masked autoencoder's patches in their order, which it draws even so."""
    if network.config.model_type != "vit_mae":
        return {}
    order = torch.arange(network.embeddings.patch_embeddings.num_patches, device=network.device)
    return {"noise": order.expand(count, -1)}


def positions(hidden: Tensor) -> Tensor:
    """(B, T, D) as it is; maps (B, D, H, W) as positions in raster order."""
    return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden


def pooler_of(out: Any) -> Tensor:
    """The features (B, D) of a tower, whatever the version of transformers wraps them in."""
    return out if isinstance(out, Tensor) else out.pooler_output


def _no_choice(found: Any, wanted: Wanted) -> None:
    if wanted.pooling not in ("auto", "own"):
        raise UserError(f"--pooling {wanted.pooling}: {found.scheme} models pool in their own way")


def _plain(value: Any) -> Any:
    """A transform's setting as JSON."""
    return value if isinstance(value, int | float | list | None) else str(value)
