"""Small helpers that several kinds share: option fields, arrays from bytes, padding."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from uml_core.errors import BadSample, cause
from uml_core.modalities.base import sent

MAX_ARRAY_BYTES = 64 * 2**20  # of one decoded array; guards against zip bombs
MAX_MEMBERS = 64  # of one npz archive
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes; others unpack unbounded


def option(default: Any, text: str) -> Any:
    """A dataclass field with its default and the sentence that `--help` shows (metadata "help")."""
    return field(default=default, metadata={"help": text})


def least_problems(options: Any, **least: float) -> list[str]:
    """A sentence for each named field whose value is below its least legal value."""
    return [
        f"{name}: must be at least {low:g}, not {getattr(options, name)}."
        for name, low in least.items()
        if not getattr(options, name) >= low
    ]


def most_problems(options: Any, **most: float) -> list[str]:
    """A sentence for each named field whose value is above what no data needs."""
    return [
        f"{name}: must be at most {high:,}, not {getattr(options, name):g}."
        for name, high in most.items()
        if getattr(options, name) is not None and not getattr(options, name) <= high
    ]


def load_array(data: bytes, suffix: str) -> tuple[np.ndarray, bool]:
    """The array of an npy member, or of an npz with one array or one called x.

    Returns its values as float32, of the stored shape, and whether they were stored as integers.

    Nothing is unpickled and nothing larger than `MAX_ARRAY_BYTES` is unpacked. Raises BadSample
    for damaged bytes, object arrays, non-numeric or non-finite values.
    """
    try:
        array = _read_npy(_npz_member(data) if suffix == "npz" else data)
    except BadSample:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged bytes
        raise BadSample(f"not a readable {suffix} array: {cause(error)}") from error
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise BadSample("the array holds NaN or infinite values (as 32-bit floats)")
    return values, array.dtype.kind in "biu"


def _npz_member(data: bytes) -> bytes:
    # Each entry of the directory begins so; counted before `zipfile` makes an object of each, and
    # only where it looks for them: the arrays may hold anything.
    entries = 0
    for end in {len(data) - 22, data.rfind(b"PK\x05\x06")} - {-1}:
        size = int.from_bytes(data[end + 12 : end + 16], "little") + 76  # of ZIP64's own records
        entries = max(entries, data.count(b"PK\x01\x02", max(0, end - size), max(0, end)))
    if entries > MAX_MEMBERS:
        raise BadSample(f"the npz holds {entries} arrays, more than {MAX_MEMBERS}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        name = names[0] if len(names) == 1 else "x.npy"
        if name not in names:
            named = ", ".join(one.removesuffix(".npy")[:40] for one in names[:3])
            more = ", ..." if len(names) > 3 else ""
            there = f" ({named}{more}): call the one that is meant x" if names else ""
            raise BadSample(f"the npz holds {len(names)} arrays, and none is called x{there}")
        if archive.getinfo(name).compress_type not in _UNPACKED:
            raise BadSample("the npz is neither stored nor deflated: save it with numpy")
        with archive.open(name) as member:
            unpacked = member.read(MAX_ARRAY_BYTES + 1)
    if len(unpacked) > MAX_ARRAY_BYTES:
        raise BadSample(_TOO_LARGE)
    return unpacked


def _read_npy(data: bytes) -> np.ndarray:
    """As np.load(allow_pickle=False), but the header cannot ask for more than the bytes hold."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise BadSample(f"npy format {version} is not supported: save a plain numeric array")
    if dtype.kind not in "biuf":
        # numpy has no bfloat16: what torch or ml_dtypes holds in it is saved as raw 2-byte values.
        raw = (
            ": bfloat16, say, which npy cannot name; save it as float32"
            if dtype.str == "|V2"
            else ""
        )
        raise BadSample(f"the array's type is {dtype}, not a real number{raw}")
    count = math.prod(shape)
    if count * max(4, dtype.itemsize) > MAX_ARRAY_BYTES:  # as float32, which it becomes
        raise BadSample(_TOO_LARGE)
    if count < 0 or count * dtype.itemsize > len(data) - stream.tell():
        raise BadSample("the array is cut off")
    flat = np.frombuffer(data, dtype, count, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


_TOO_LARGE = f"the array takes more than {MAX_ARRAY_BYTES >> 20} MiB"


def pad_stack(items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """B tensors (T_b, ...) -> right-zero-padded (B, T, ...) and mask (B, T), None if no padding."""
    lengths = [len(item) for item in items]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.stack(list(items)), None
    mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    mask = sent(mask, items[0].device)
    return pad_sequence(list(items), batch_first=True), mask


def grouped(series: Tensor, size: int) -> Tensor:
    """(T, D) -> (T // size, size * D): one row per group of `size` steps.

    What is left over at the end is dropped; a series shorter than a group is padded to one.
    """
    series = F.pad(series, (0, 0, 0, max(0, size - len(series))))
    groups = len(series) // size
    return series[: groups * size].reshape(groups, -1)


def unpad(x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The inverse of `pad_stack`: (B, T, ...) and mask -> B tensors (T_b, ...)."""
    if mask is None:
        return list(x)
    return [row[:length] for row, length in zip(x, mask.sum(1).tolist(), strict=True)]


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, W) -> (B, W), over the valid positions only."""
    if mask is None:
        return x.squeeze(1) if x.shape[1] == 1 else x.mean(1)
    return (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
