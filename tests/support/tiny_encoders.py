"""Small encoders with random weights, saved as their libraries save them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
NAMES = ("a", "the", "of", "photo", "red", "green", "blue", "cat", "dog", "owl", "thing", "small")
WORDS = [*NAMES, "large", *SPECIAL]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def png(height: int, width: int, seed: int = 0) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def wav(seconds: float, rate: int = 16_000, seed: int = 0) -> bytes:
    """A clip of noise."""
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).normal(size=round(seconds * rate)).clip(-3, 3) / 4
    soundfile.write(stream, noise, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def vit(folder: Path, size: int = 32) -> Path:
    """transformers: a vision transformer whose processor has statistics of its own."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        **SIZES,
        image_size=size,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": size, "width": size},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    ).save_pretrained(folder)
    return folder


def tokenizer(folder: Path, *, special: bool = True) -> None:
    """A word tokeniser, with [CLS] and [SEP] around texts or without."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if special:
        cls, sep = WORDS.index("[CLS]"), WORDS.index("[SEP]")
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)


def bert(folder: Path) -> Path:
    """transformers: a masked language model."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        **SIZES,
        max_position_embeddings=16,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """transformers: a decoder, without a token for padding."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(2)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, n_positions=16)
    GPT2Model(config).save_pretrained(folder)
    tokenizer(folder, special=False)
    return folder


def clip(folder: Path) -> Path:
    """transformers: two towers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(3)
    sizes = {**SIZES, "projection_dim": 24}
    text = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    ends = {"bos_token_id": WORDS.index("[CLS]"), "eos_token_id": WORDS.index("[SEP]")}
    config = CLIPConfig(
        text_config={**text, **ends},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    tokenizer(folder)
    return folder


def wav2vec2(folder: Path) -> Path:
    """transformers: a speech model."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(4)
    config = Wav2Vec2Config(
        **SIZES,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    return folder


def timm_resnet(folder: Path) -> Path:
    """timm: a small residual network."""
    import timm

    torch.manual_seed(5)
    model = timm.create_model("resnet10t", num_classes=7)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"input_size": [3, 40, 40], "interpolation": "bilinear", "crop_pct": 1.0}
    about |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "num_classes": 7}
    about |= {"classifier": "fc", "first_conv": "conv1.0", "pool_size": [2, 2]}
    config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def torchvision_mobilenet(path: Path) -> Path:
    """torchvision: the weights of a mobilenet_v3_small."""
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(6)
    torch.save(mobilenet_v3_small().state_dict(), path)
    return path
