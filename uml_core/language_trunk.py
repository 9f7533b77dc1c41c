"""The trunk of a language model: BERT or GPT-2 weights for the shared trunk (paper 3.8).

A checkpoint is a folder as `save_pretrained` of the transformers library leaves it: config.json
and model.safetensors, or shards of it with model.safetensors.index.json. Nothing else is read, so
nothing in it can run code.

    config.json     `adopt`: sizes and variant of the trunk, merged into the recipe's ModelSpec
    tensor headers  `check_weights`: all that is missing or of a wrong shape, before a run
    tensors         `load_trunk`: into the trunk of a learner

What is taken: the blocks, the norm before them (BERT) or after them (GPT-2) and, with positions:
learned, the position table. Words are not: stems stay those of the recipe's modalities.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uml_core.errors import UserError
from uml_core.specs import ModelSpec
from uml_core.trunk import Trunk
from uml_core.typed import build

MAX_JSON_BYTES = 16 << 20
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]
ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Source(NamedTuple):
    """Where one tensor of the trunk comes from: `names`, stacked along dimension 0.

    transposed  the file holds (in, out), as GPT-2's Conv1D does
    row         another tensor, whose row 0 is added to every row
    """

    names: tuple[str, ...]
    transposed: bool = False
    row: str | None = None


def _bert_sources(spec: ModelSpec) -> dict[str, Source]:
    parts = {
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "out": ("attention.output.dense",),
        "norm1": ("attention.output.LayerNorm",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
        "norm2": ("output.LayerNorm",),
    }
    found = {
        f"blocks.{i}.{ours}.{kind}": Source(
            tuple(f"encoder.layer.{i}.{name}.{kind}" for name in theirs)
        )
        for i in range(spec.depth)
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        found[f"input_norm.{kind}"] = Source((f"embeddings.LayerNorm.{kind}",))
    if spec.positions == "learned":
        # Every token of a BERT carries the embedding of segment 0 as well.
        segment = "embeddings.token_type_embeddings.weight"
        found["positions"] = Source(("embeddings.position_embeddings.weight",), row=segment)
    return found


def _gpt2_sources(spec: ModelSpec) -> dict[str, Source]:
    linear = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    norms = {"norm1": "ln_1", "norm2": "ln_2"}
    found = {
        f"blocks.{i}.{ours}.{kind}": Source(
            (f"h.{i}.{theirs}.{kind}",), transposed=ours in linear and kind == "weight"
        )
        for i in range(spec.depth)
        for ours, theirs in (linear | norms).items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = Source((f"ln_f.{kind}",))
    if spec.positions == "learned":
        found["positions"] = Source(("wpe.weight",))
    return found


@dataclass(frozen=True)
class BertConfig:
    """What config.json of a BERT says of its blocks, with the values where it says nothing."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 512
    position_embedding_type: Literal["absolute"] = "absolute"

    def fields(self) -> dict[str, Any]:
        """As fields of our ModelSpec."""
        return {
            "width": self.hidden_size,
            "depth": self.num_hidden_layers,
            "heads": self.num_attention_heads,
            "ff": self.intermediate_size,
            "norm": "post",
            "norm_eps": self.layer_norm_eps,
            "input_norm": True,
            "activation": ACTIVATIONS[self.hidden_act],
            "max_positions": self.max_position_embeddings,
        }


@dataclass(frozen=True)
class Gpt2Config:
    """What config.json of a GPT-2 says of its blocks, with the values where it says nothing."""

    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    activation_function: Activation = "gelu_new"
    n_positions: int = 1024
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False

    def fields(self) -> dict[str, Any]:
        """As fields of our ModelSpec."""
        return {
            "width": self.n_embd,
            "depth": self.n_layer,
            "heads": self.n_head,
            "ff": self.n_inner or 4 * self.n_embd,
            "norm": "pre",
            "norm_eps": self.layer_norm_epsilon,
            "input_norm": False,
            "activation": ACTIVATIONS[self.activation_function],
            "max_positions": self.n_positions,
        }


class Family(NamedTuple):
    """One type of checkpoint.

    config   reads its config.json
    sources  of the trunk's tensors
    anchor   a tensor that every such checkpoint holds; what precedes it is the names' prefix
    """

    config: type[BertConfig] | type[Gpt2Config]
    sources: Callable[[ModelSpec], dict[str, Source]]
    anchor: str


FAMILIES = {
    "bert": Family(BertConfig, _bert_sources, "encoder.layer.0.attention.self.query.weight"),
    "gpt2": Family(Gpt2Config, _gpt2_sources, "h.0.attn.c_attn.weight"),
}
AT_MOST = ("depth", "max_positions")  # a recipe may take the first blocks and positions only


# --------------------------------------------------------------------------- config.json


def adopt(spec: ModelSpec, given: Collection[str]) -> ModelSpec:
    """`spec` with the sizes and the variant of the checkpoint in `spec.trunk_init`.

    given  fields of `spec` that a person wrote down: they must agree with the checkpoint, but
           depth and max_positions may be smaller, which takes the first blocks and positions

    Raises UserError with every field that disagrees, or where there is no such checkpoint. Where
    all sizes are given, as in the recipe that a run leaves behind, no folder is needed: a trained
    model can be rebuilt without it.
    """
    folder = Path(str(spec.trunk_init))
    if not folder.is_dir() and {"norm", "width", "depth", "heads", "ff"} <= set(given):
        return spec
    theirs = _read_config(folder)[1].fields()
    if spec.positions != "learned":
        del theirs["max_positions"]
    problems, taken = [], {}
    for name, value in theirs.items():
        ours = getattr(spec, name)
        if name not in given or ours is None or ours == value:
            taken[name] = value
        elif name not in AT_MOST or ours > value:
            problems.append(f"{name} is {ours} here, but {value} in the checkpoint: leave it out")
    if problems:
        raise UserError(problems)
    return replace(spec, **taken)


def _read_config(folder: Path) -> tuple[Family, BertConfig | Gpt2Config]:
    """The family and config.json of a checkpoint. Raises UserError for what cannot be a trunk."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    path = folder / CONFIG
    said = _read_json(path)
    kind = said.get("model_type")
    if kind not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise UserError(f"{path} is of model_type {kind!r}; only {known} can be the trunk")
    family = FAMILIES[kind]
    names = {field.name for field in dataclasses.fields(family.config)}
    problems: list[str] = []
    config = build(family.config, {k: v for k, v in said.items() if k in names}, "", problems)
    if problems:
        raise UserError([f"{path}: {problem}" for problem in problems])
    return family, config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not what it seems")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


# ------------------------------------------------------------------------------- tensors


class Checkpoint:
    """The tensors of a checkpoint folder by name, without the prefix that a head adds."""

    def __init__(self, folder: Path, anchor: str) -> None:
        files = _weight_files(folder)
        prefixes = [name.removesuffix(anchor) for name in files if name.endswith(anchor)]
        if len(prefixes) != 1:
            raise UserError(f"{folder} has no tensor {anchor}: not the weights of its {CONFIG}")
        self._prefix, self._files = prefixes[0], files

    def _find(self, name: str) -> str | None:
        """The name in the file; the first BERTs say gamma and beta for weight and bias."""
        whole = self._prefix + name
        stem = whole.rpartition(".")[0]
        old = f"{stem}.gamma" if name.endswith("weight") else f"{stem}.beta"
        return next((n for n in (whole, old) if n in self._files), None)

    def shape(self, source: Source) -> tuple[int, ...] | None:
        """Of the trunk's tensor that a source makes; None where a part of it is missing."""
        shapes = []
        for name in (*source.names, *([source.row] if source.row else [])):
            found = self._find(name)
            if found is None:
                return None
            with safe_open(self._files[found], framework="pt") as file:
                shapes.append(tuple(file.get_slice(found).get_shape()))
        first = shapes[0][::-1] if source.transposed else shapes[0]
        parts = len(source.names)
        return (parts * first[0], *first[1:]) if first else ()

    def tensor(self, source: Source) -> Tensor:
        """The trunk's tensor, of the shape that `shape` says, as 32-bit floats."""
        parts = [self._read(name) for name in source.names]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        value = value.T.contiguous() if source.transposed else value
        return value if source.row is None else value + self._read(source.row)[0]

    def _read(self, name: str) -> Tensor:
        found = self._find(name)
        assert found is not None, name
        with safe_open(self._files[found], framework="pt") as file:
            return file.get_tensor(found).float()


def _weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it."""
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        listed = _read_json(folder / INDEX).get("weight_map")
        values = list(listed.values()) if isinstance(listed, dict) else [""]
        names = sorted({str(value) for value in values})
        if any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
            raise UserError(f"{folder / INDEX} does not name safetensors files beside it")
    else:
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".h5"))
        hint = f" (only {', '.join(others)}, which could run code)" if others else ""
        raise UserError(
            f"{folder} has no {WEIGHTS}{hint}: save the model with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    files = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), folder / name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / name} cannot be read: {error}") from error
    return files


def check_weights(spec: ModelSpec) -> None:
    """Raises UserError with every tensor that the checkpoint lacks or has in another shape.

    Reads headers only. Nothing happens where the recipe names no checkpoint.
    """
    if spec.trunk_init is None:
        return
    folder = Path(spec.trunk_init)
    family, _ = _read_config(folder)
    checkpoint = Checkpoint(folder, family.anchor)
    wanted = _shapes(spec)
    problems = []
    for name, source in family.sources(spec).items():
        shape, names = checkpoint.shape(source), " + ".join(source.names)
        if shape is None:
            problems.append(f"model.trunk_init: {folder} lacks {names}")
        elif name == "positions" and shape[0] >= wanted[name][0] and shape[1:] == wanted[name][1:]:
            continue  # the first positions of a longer table
        elif shape != wanted[name]:
            problems.append(
                f"model.trunk_init: {names} makes {shape} of what must be {wanted[name]}"
            )
    if problems:
        raise UserError(problems)


@torch.no_grad()
def load_trunk(trunk: Trunk, spec: ModelSpec) -> None:
    """Copies the checkpoint's tensors into a trunk built from the adopted `spec`.

    A bias-free input projection, where the recipe asks for one, keeps its random weights. Raises
    UserError as `check_weights` does.
    """
    check_weights(spec)
    folder = Path(str(spec.trunk_init))
    family, _ = _read_config(folder)
    checkpoint = Checkpoint(folder, family.anchor)
    parameters = dict(trunk.named_parameters())
    for name, source in family.sources(spec).items():
        value = checkpoint.tensor(source)
        parameters.pop(name).copy_(value[: spec.max_positions] if name == "positions" else value)
    assert set(parameters) <= {"input.weight"}, parameters.keys()


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        trunk = Trunk(spec, causal=False)
    return {name: tuple(p.shape) for name, p in trunk.named_parameters()}


def description(spec: ModelSpec) -> str | None:
    """What the trunk starts from and when it trains, for a person; None where nothing is said."""
    if spec.trunk_init is None and not spec.trunk_frozen:
        return None
    start = "random"
    if spec.trunk_init is not None:
        folder = Path(spec.trunk_init)
        kind = _read_json(folder / CONFIG).get("model_type")
        family = FAMILIES[str(kind)]
        weights = sum(torch.Size(_shapes(spec)[n]).numel() for n in family.sources(spec))
        start = f"{spec.depth} blocks of {kind}, {weights:,} weights, from {folder}"
    if spec.trunk_frozen is True:
        return f"{start}; frozen"
    if spec.trunk_frozen:
        return f"{start}; frozen for {spec.trunk_frozen} steps, then trained"
    return f"{start}; trained"
