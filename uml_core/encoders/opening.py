"""Which encoder a name means, where its weights lie, and the encoder itself.

    DIR                         a folder of transformers, timm or sentence-transformers
    transformers:ID             weights from a hub id, in the usual cache or downloaded
    timm:NAME  sentence:ID      likewise
    torchvision:NAME[=FILE]     default weights of torchvision, or those of a file
    torchaudio:BUNDLE[=FILE]    a pipeline of torchaudio

Only safetensors and tensors without code are read. Without a network, weights that are neither in a
folder nor in the cache are an error that says how to get them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from uml_core.encoders.base import Encoder, Wanted
from uml_core.errors import UserError, near

Scheme = Literal["transformers", "timm", "sentence", "torchvision", "torchaudio"]
SCHEMES = ("transformers", "timm", "sentence", "torchvision", "torchaudio")
PACKAGES = {"sentence": "sentence-transformers"}
HUB = ["*.json", "*.safetensors", "*.txt", "*.model"]  # files of a hub folder that are data


@dataclass(frozen=True)
class Located:
    """An encoder whose weights are on this machine.

    name   as the person gave it; path: the folder, or the file of torchvision and torchaudio
    model  architecture or bundle of torchvision and torchaudio, else empty
    """

    scheme: str
    name: str
    path: Path
    model: str = ""

    @property
    def files(self) -> list[Path]:
        """The weights."""
        if self.path.is_file():
            return [self.path]
        return sorted(self.path.rglob("*.safetensors"))

    @property
    def weights_bytes(self) -> int:
        """Size of all weight files."""
        return sum(os.path.getsize(file) for file in self.files)

    def weights_sha256(self) -> str:
        """Of the contents of all weight files, in the order of their names."""
        return _hash(tuple(self.files))

    def elsewhere(self, path: Path) -> Located:
        """The same encoder with its weights in another folder or file."""
        return replace(self, path=path.resolve())


@lru_cache(maxsize=8)
def _hash(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    return digest.hexdigest()


def locate(name: str) -> Located:
    """Finds the weights of an encoder. Raises UserError where they are not to be had."""
    scheme, colon, rest = name.partition(":")
    path = Path(name).expanduser()
    if path.is_dir() or not colon:
        return _folder(path, name)
    if scheme not in SCHEMES:
        raise UserError(
            f"--encoder {name}: '{scheme}' is none of {', '.join(SCHEMES)}{near(scheme, SCHEMES)}; "
            "or give a folder"
        )
    check_package(scheme)
    if scheme in ("torchvision", "torchaudio"):
        return _of_torch(scheme, name, rest)
    if Path(rest).expanduser().is_dir():
        return Located(scheme, name, _checked(Path(rest).expanduser()))
    return Located(scheme, name, _from_hub(name, f"timm/{rest}" if scheme == "timm" else rest))


def check_package(scheme: str) -> None:
    """Raises UserError where the library of a scheme (or another package) is not installed."""
    package = PACKAGES.get(scheme, scheme)
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{package} is not installed: pip install 'unpaired-multimodal-learner[encoders]' (in "
            "a checkout: pip install -e '.[encoders]')"
        ) from None


def _folder(path: Path, name: str) -> Located:
    """A folder, whose files tell which library wrote it."""
    if not path.is_dir():
        raise UserError(
            f"--encoder {name}: there is no such folder; for weights in a cache write "
            f"{', '.join(f'{s}:NAME' for s in SCHEMES)}"
        )
    scheme = "transformers"
    if (path / "modules.json").is_file():
        scheme = "sentence"
    else:
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} holds no encoder: expected config.json and *.safetensors as "
                f"save_pretrained leaves them ({error})"
            ) from error
        if isinstance(config, dict) and "architecture" in config:
            scheme = "timm"
    check_package(scheme)
    return Located(scheme, name, _checked(path))


def _checked(path: Path) -> Path:
    if not any(path.rglob("*.safetensors")):
        raise UserError(
            f"{path} holds no *.safetensors; other weights can hold code and are not read. Convert "
            "them once with model.save_pretrained(DIR, safe_serialization=True)"
        )
    return path.resolve()


def _from_hub(name: str, repo: str) -> Path:
    """The folder of a hub id: from the cache, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(repo, local_files_only=True, allow_patterns=HUB)))
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except HFValidationError as error:
        raise UserError(f"--encoder {name}: {error}") from error
    try:
        return _checked(Path(snapshot_download(repo, allow_patterns=HUB, etag_timeout=10)))
    except UserError:
        raise
    except Exception as error:  # requests, httpx and the hub's own: a dozen kinds
        raise UserError(
            f"--encoder {name}: its weights are not in the cache and could not be downloaded "
            f"({_short(error)}). On a machine with a network run `hf download {repo} --local-dir "
            "DIR`, copy DIR here and give --encoder DIR"
        ) from error


def _of_torch(scheme: str, name: str, rest: str) -> Located:
    """A model of torchvision or torchaudio: its file, that of the cache, or downloaded there."""
    model, given, file = rest.partition("=")
    url = _url(scheme, name, model)
    if given:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"--encoder {name}: there is no file {path}")
        return Located(scheme, name, path.resolve(), model)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--encoder {name}: its weights are not in {path.parent} and could not be "
                f"downloaded ({_short(error)}). Get {url} on a machine with a network and give "
                f"--encoder {scheme}:{model}=FILE"
            ) from error
    return Located(scheme, name, path, model)


def _url(scheme: str, name: str, model: str) -> str:
    """Where the weights of a model come from. Raises UserError for a name that is none."""
    if scheme == "torchvision":
        from torchvision.models import get_model_weights, list_models

        if model not in (known := list_models()):
            raise UserError(f"--encoder {name}: torchvision has no '{model}'{near(model, known)}")
        return next(iter(get_model_weights(model))).DEFAULT.url
    from uml_core.media import sound

    pipelines = sound.pipelines()
    known = [n for n in pipelines.__all__ if hasattr(getattr(pipelines, n), "get_model")]
    if model not in known:
        raise UserError(f"--encoder {name}: torchaudio has no '{model}'{near(model, known)}")
    path = getattr(pipelines, model)._path
    return path if "://" in path else f"https://download.pytorch.org/torchaudio/models/{path}"


def open_encoder(
    found: Located, kind: str, wanted: Wanted, device: torch.device | str = "cpu"
) -> Encoder:
    """The encoder for a kind of data, on its device, frozen and in evaluation mode.

    Raises UserError where it does not take this kind, or where its files are damaged.
    """
    maker = _maker(found.scheme, kind)
    if maker is None:
        raise UserError(f"--encoder {found.name}: {found.scheme} has no encoder of {kind}")
    if found.scheme in ("transformers", "sentence"):
        no_bars()
    try:
        made: Encoder = maker(found, wanted)
    except UserError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds for what is missing or damaged
        raise UserError(
            f"--encoder {found.name}: {found.path} cannot be opened as an encoder of {kind}: "
            f"{_short(error)}"
        ) from error
    made.network.to(device).eval().requires_grad_(False)
    return made


def no_bars() -> None:
    """Weights are read without transformers' own bar, which would fight with ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _maker(scheme: str, kind: str) -> Any:
    """What opens an encoder; libraries are imported when one of theirs is."""
    from uml_core.encoders import audio, text, vision

    makers: dict[tuple[str, str], Any] = {
        ("transformers", "image"): vision.TransformersVision,
        ("transformers", "text"): text.TransformersText,
        ("transformers", "audio"): audio.TransformersAudio,
        ("timm", "image"): vision.Timm,
        ("torchvision", "image"): vision.Torchvision,
        ("torchaudio", "audio"): audio.Torchaudio,
        ("sentence", "text"): text.Sentence,
    }
    return makers.get((scheme, kind))


def reference(found: Located, encoder: Encoder, width: int) -> dict[str, Any]:
    """What index.json and model.json say of an encoder; `locate` and `wanted` open it again."""
    package = PACKAGES.get(found.scheme, found.scheme)
    return {
        "name": found.name if ":" in found.name else f"{found.scheme}:{found.path.name}",
        "scheme": found.scheme,
        "model": found.model,
        "path": str(found.path),
        "library": f"{package} {importlib.metadata.version(package)}",
        "weights_sha256": found.weights_sha256(),
        "kind": encoder.kind,
        "output": encoder.wanted.output,
        "pooling": encoder.pooling,
        "bf16": encoder.wanted.bf16,
        "width": width,
        "preprocessing": encoder.preprocessing,
    }


def of_reference(entry: dict[str, Any], path: str | None = None) -> tuple[Located, Wanted]:
    """The encoder that made features, from its entry; path: where its weights lie now.

    Raises UserError where they are gone or others.
    """
    place = Path(path or entry["path"]).expanduser()
    if not place.exists():
        raise UserError(
            f"the encoder {entry['name']} is not at {place}: give its folder or file with --encoder"
        )
    found = Located(entry["scheme"], entry["name"], place.resolve(), entry["model"])
    check_package(found.scheme)
    if found.weights_sha256() != entry["weights_sha256"]:
        raise UserError(
            f"{place} holds other weights than those of {entry['name']} that made the features "
            f"(sha256 {entry['weights_sha256'][:12]}...)"
        )
    return found, Wanted(entry["output"], entry["pooling"], entry["bf16"])


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
