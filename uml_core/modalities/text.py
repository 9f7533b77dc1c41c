"""Text: a stateless hashing tokeniser, so that nothing has to be fitted or downloaded."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from uml_core.modalities.base import BadSample, Modality
from uml_core.modalities.common import least_problems, most_problems, option, pad_stack
from uml_core.plain_text import normalised

PAD = 0
NGRAMS = (1, 2, 3)


@dataclass(frozen=True)
class Options:
    """Recipe fields of kind `text`."""

    unit: Literal["word", "char", "char_ngram"] = option(
        "word",
        "what a token is: a word, a character, or the 1- to 3-grams of each word's characters "
        "with its boundaries (for single words and for languages never trained on)",
    )
    vocab: int = option(4096, "hash buckets; bucket 0 is padding")
    max_tokens: int = option(64, "tokens kept of a text; the rest is cut off")
    max_chars: int = option(10_000, "texts of more characters are bad samples")
    stem: Literal["auto", "bag", "tokens"] = option(
        "auto",
        "bag: mean of the token embeddings, supervised only; tokens: a series of embeddings; "
        "auto: bag in the supervised setting, tokens in the self-supervised one",
    )


class _Bag(nn.Module):
    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab, width, mode="mean", padding_idx=PAD)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self.mlp(self.embedding(x)).unsqueeze(1), None


class _Tokens(nn.Module):
    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width, padding_idx=PAD)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.embedding(x), mask


class Text(Modality):
    """UTF-8 text -> token ids. x is (B, T) int64, right-padded with 0."""

    kind = "text"
    suffixes = ("txt",)
    Options = Options
    shorten = "max_tokens"
    loss = "cross_entropy"

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        problems = least_problems(options, vocab=2, max_tokens=1, max_chars=1)
        problems += most_problems(options, vocab=2**24, max_tokens=10**6, max_chars=10**8)
        if setting == "self_supervised" and options.stem == "bag":
            problems.append(
                "stem: bag has no next token to predict: use stem: tokens in the self-supervised "
                "setting."
            )
        return problems

    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        text = self.text(data)
        tokens = tokenise(text, self.options.unit)[: self.options.max_tokens]
        if not tokens:
            raise BadSample("the text holds no letter and no digit")
        buckets = self.options.vocab - 1
        return torch.tensor([1 + zlib.crc32(t.encode()) % buckets for t in tokens])

    def text(self, data: bytes) -> str:
        """UTF-8 -> text of at most max_chars characters. Raises BadSample."""
        limit = self.options.max_chars
        if len(data) > 4 * limit:  # UTF-8 takes at most 4 bytes per character
            raise BadSample(f"the text is longer than max_chars {limit}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSample(f"the text is not UTF-8: {error}") from error
        if len(text) > limit:
            raise BadSample(f"the text has {len(text)} characters, more than max_chars {limit}")
        return text

    def collate(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        return pad_stack(items)

    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        return (_Bag if self._bags(supervised) else _Tokens)(self.options.vocab, width)

    def most_positions(self, *, supervised: bool) -> int:
        return 1 if self._bags(supervised) else self.options.max_tokens

    def _bags(self, supervised: bool) -> bool:
        return supervised and self.options.stem != "tokens"

    def decoder(self, width: int) -> nn.Module:
        return nn.Linear(width, self.options.vocab)

    def targets(self, x: Tensor) -> Tensor:
        return x

    def coarse(self, item: Tensor) -> Tensor:
        """Share of each hash bucket among the text's tokens: (vocab,)."""
        return torch.bincount(item, minlength=self.options.vocab) / len(item)


def tokenise(text: str, unit: str) -> list[str]:
    """Text -> tokens after NFKC normalisation and case folding; punctuation is left out."""
    words = _words(normalised(text))
    if unit == "word":
        return words
    if unit == "char":
        return list(" ".join(words))
    grams = []
    for word in words:
        bounded = f"<{word}>"
        for start in range(len(bounded)):
            grams += [bounded[start : start + n] for n in NGRAMS if start + n <= len(bounded)]
    return grams


def _words(text: str) -> list[str]:
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text)
    # Letters, numbers and marks: \w would split words at the vowel signs of Indic scripts.
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
    return "".join(kept).split()
