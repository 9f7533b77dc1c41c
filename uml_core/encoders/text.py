"""Text encoders: transformers (BERT-like, decoders, CLIP's text tower), sentence-transformers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from uml_core.encoders.base import TextEncoder, Wanted
from uml_core.encoders.vision import pooler_of
from uml_core.errors import UserError
from uml_core.modalities.base import BadSample

MOST_TOKENS = 2048  # of a text, where neither tokeniser nor model says less
PADDED = ("siglip", "siglip2")  # their text towers read the last position, padding or not
# No mask keeps these from the padding: Fourier transforms and blocks run over all positions.
BLIND_TO_MASKS = ("fnet", "big_bird", "reformer", "funnel")


class TransformersText(TextEncoder):
    """AutoModel and AutoTokenizer of a folder.

    auto pooling (paper 2.3): encoders give the output of their first token (CLS), decoders the mean
    over all tokens that are not padding, models of two towers their projected text features.
    """

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__(wanted)
        local: dict[str, Any] = {"local_files_only": True}
        model = AutoModel.from_pretrained(found.path, use_safetensors=True, **local)
        self.towers = hasattr(model, "get_text_features")
        self.network = model.get_encoder() if model.config.is_encoder_decoder else model
        self.tokenizer = AutoTokenizer.from_pretrained(found.path, **local)
        if self.tokenizer.pad_token is None:  # padding is masked, any token will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.most = _most(self.tokenizer, model.config)
        self.padded = model.config.model_type in PADDED
        if wanted.pooling == "auto":
            self.pooling = "projection" if self.towers else _usual(model.config)
        elif wanted.pooling == "pooler":
            raise UserError("--pooling pooler: for text encoders use auto, cls or mean")
        name = type(self.tokenizer).__name__
        self.preprocessing = {"tokenizer": name, "max_tokens": self.most}
        _settle(self.tokenizer, self.most)

    def tokens(self, text: str) -> list[int]:
        found = self.tokenizer(text, truncation=True, max_length=self.most)["input_ids"]
        if not found:
            raise BadSample("the text has no token")
        return found

    def alike(self, item: list[int]) -> Hashable:
        """Texts of one length, where the model would look at the padding."""
        return len(item) if self._any.config.model_type in BLIND_TO_MASKS else None

    def _features(self, items: Sequence[list[int]]) -> tuple[Tensor, Tensor | None]:
        to_most: dict[str, Any] = {}
        if self.padded:
            to_most = {"padding": "max_length", "max_length": self.most}
        batch = self.tokenizer.pad({"input_ids": list(items)}, return_tensors="pt", **to_most)
        x, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        network = self._any
        if self.padded:
            return self._of_padded(x, mask)
        if self.pooling == "projection" and self.wanted.output == "pooled":
            return pooler_of(network.get_text_features(input_ids=x, attention_mask=mask)), mask
        tower = network.text_model if self.towers else network
        seen = {} if self.alike(items[0]) else {"attention_mask": mask}
        hidden = tower(input_ids=x, **seen).last_hidden_state
        return self._reduced(hidden, mask), mask

    def _of_padded(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a tower that was trained on texts padded to one length, without a mask."""
        if self.pooling == "projection" and self.wanted.output == "pooled":
            return pooler_of(self._any.get_text_features(input_ids=x)), None
        hidden = self._any.text_model(input_ids=x).last_hidden_state
        return self._reduced(hidden, mask), mask


class Sentence(TextEncoder):
    """A folder of sentence-transformers with its own pooling and normalisation."""

    def __init__(self, found: Any, wanted: Wanted) -> None:
        from sentence_transformers import SentenceTransformer

        super().__init__(wanted)
        if wanted.pooling not in ("auto", "own"):
            raise UserError(f"--pooling {wanted.pooling}: sentence encoders pool in their own way")
        made = SentenceTransformer(
            str(found.path),
            local_files_only=True,
            device="cpu",
            model_kwargs={"use_safetensors": True},
        )
        self.network, self.pooling = made, "own"
        self.tokenizer = made.tokenizer
        self.most = made.max_seq_length or MOST_TOKENS
        name = type(self.tokenizer).__name__
        self.preprocessing = {"tokenizer": name, "max_tokens": self.most}
        _settle(self.tokenizer, self.most)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=self.most)["input_ids"]

    def _features(self, items: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer.pad({"input_ids": list(items)}, return_tensors="pt")
        out = self.network({name: value.to(self.device) for name, value in batch.items()})
        name = "token_embeddings" if self.wanted.output == "tokens" else "sentence_embedding"
        return out[name], out["attention_mask"]


def _settle(tokenizer: Any, most: int) -> None:
    """Sets the truncation once: threads may share a tokeniser as long as nobody changes it."""
    tokenizer("a", truncation=True, max_length=most)


def _most(tokenizer: Any, config: Any) -> int:
    """Tokens that both tokeniser and model take."""
    text = getattr(config, "text_config", config)
    table = getattr(text, "max_position_embeddings", None) or MOST_TOKENS
    if getattr(text, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        table -= text.pad_token_id + 1  # their positions start behind the padding's
    return int(min(tokenizer.model_max_length, table, MOST_TOKENS))


def _usual(config: Any) -> str:
    """cls for encoders, mean for decoders and for the encoders of translation models."""
    from transformers.models.auto import modeling_auto as auto

    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "cls" if masked and not config.is_encoder_decoder else "mean"
