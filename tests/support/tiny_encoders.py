"""Small encoders with random weights, saved as their libraries save them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from torchaudio.models import wav2vec2_model

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


# ------------------------------------------------------------------- one of every other family


def vit_mae(folder: Path) -> Path:
    """transformers: a masked autoencoder, which hides 75 % of the patches."""
    from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEModel

    torch.manual_seed(7)
    ViTMAEModel(ViTMAEConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def hiera(folder: Path) -> Path:
    """transformers: a hierarchical vision transformer, made for masked pre-training."""
    from transformers import BitImageProcessor, HieraConfig, HieraModel

    torch.manual_seed(8)
    config = HieraConfig(
        embed_dim=16,
        image_size=[32, 32],
        patch_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        depths=[1, 1],
        num_heads=[1, 2],
        num_query_pool=1,
        masked_unit_size=[8, 8],
    )
    HieraModel(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    """transformers: a residual network, whose positions are a map."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    torch.manual_seed(9)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 224}).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """transformers: two towers, of which the text tower reads the last position."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(10)
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    config = SiglipConfig(
        text_config=text | {"pad_token_id": WORDS.index("[PAD]")},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer(folder)
    return folder


def fnet(folder: Path) -> Path:
    """transformers: Fourier transforms in the place of attention, which no mask keeps from
    padding."""
    from transformers import FNetConfig, FNetModel

    torch.manual_seed(11)
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    config = FNetConfig(vocab_size=len(WORDS), **sizes, max_position_embeddings=16)
    FNetModel(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def t5(folder: Path) -> Path:
    """transformers: an encoder and a decoder."""
    from transformers import T5Config, T5Model

    torch.manual_seed(12)
    ends = {"pad_token_id": WORDS.index("[PAD]"), "decoder_start_token_id": 0}
    config = T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, **ends
    )
    T5Model(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def roberta(folder: Path) -> Path:
    """transformers: positions that are counted behind the padding's."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(13)
    config = RobertaConfig(
        vocab_size=len(WORDS),
        **SIZES,
        max_position_embeddings=16 + WORDS.index("[PAD]") + 1,
        pad_token_id=WORDS.index("[PAD]"),
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer(folder)
    return folder


def hubert(folder: Path) -> Path:
    """transformers: a speech model that normalises layer by layer and takes a mask."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(14)
    config = HubertConfig(
        **SIZES,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)
    return folder


def whisper(folder: Path, seconds: int = 2) -> Path:
    """transformers: a speech recogniser that takes windows of `seconds`."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(15)
    config = WhisperConfig(
        vocab_size=len(WORDS),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50 * seconds,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        decoder_start_token_id=0,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(folder)
    return folder


def clap(folder: Path, *, fused: bool = False) -> Path:
    """transformers: sound and text in two towers, for clips of a second."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(16)
    audio = {
        "spec_size": 128,
        "num_mel_bins": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "enable_fusion": fused,
        "aff_block_r": 2,
    }
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 18}
    config = ClapConfig(audio_config=audio, text_config=text, projection_dim=24)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16_000,
        hop_length=160,
        max_length_s=1,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return folder


def ast(folder: Path) -> Path:
    """transformers: an audio spectrogram transformer for clips of about a second."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(17)
    config = ASTConfig(**SIZES, max_length=100, num_mel_bins=32)
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=100, num_mel_bins=32).save_pretrained(folder)
    return folder


def torchaudio_wav2vec2(path: Path) -> tuple[Path, Any]:
    """torchaudio: (weights, the bundle they belong to), a small one that normalises its input."""
    from torchaudio import pipelines

    bundle = pipelines.WAV2VEC2_LARGE_LV60K
    small = {
        "extractor_conv_layer_config": [(16, 10, 5), (16, 8, 4), (16, 4, 4)],
        "encoder_embed_dim": 32,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 64,
    }
    torch.manual_seed(18)
    made = replace(bundle, _params=bundle._params | small)
    torch.save(wav2vec2_model(**made._params).state_dict(), path)
    return path, made
