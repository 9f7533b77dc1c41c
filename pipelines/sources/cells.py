"""Cells of Parquet columns as what they mean: texts, names and numbers, or a refusal with the type.

Nothing is turned into its printed form: a list, a struct or a date that stands where a text should
is said to be one.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uml_core.media.formats import format_of

Role = Literal["text", "label", "file", "id", "split"]
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARIES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_fixed_size_binary,
)
_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)


def is_text(kind: pa.DataType) -> bool:
    """Strings, however they are stored."""
    return any(check(plain_type(kind)) for check in _STRINGS)


def is_binary(kind: pa.DataType) -> bool:
    """Bytes, however they are stored."""
    return any(check(plain_type(kind)) for check in _BINARIES)


def is_list(kind: pa.DataType) -> bool:
    """Lists of anything."""
    return any(check(plain_type(kind)) for check in _LISTS)


def is_numbers(kind: pa.DataType) -> bool:
    """Lists of real numbers, or lists of such lists; tensors are stored as these."""
    if not is_list(kind):
        return False
    inner = plain_type(plain_type(kind).value_type)
    checks = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal)
    return any(check(inner) for check in checks) or is_numbers(inner)


def holds_files(kind: pa.DataType) -> bool:
    """Whether each cell is a whole file: the struct of bytes and path that `datasets` writes."""
    kind = plain_type(kind)
    return pa.types.is_struct(kind) and is_binary(
        kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
    )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without dictionaries, runs and names of their own."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """The shape of each cell where the column is one of tensors of one shape, else None."""
    shape = getattr(field.type, "shape", None)  # Arrow's own, or Ray's where Ray is imported
    about = field.metadata or {}
    if shape is None and about.get(b"ARROW:extension:name", b"").startswith(b"ray.data.arrow_t"):
        with contextlib.suppress(ValueError):
            shape = json.loads(about[b"ARROW:extension:metadata"])
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) for n in shape):
        return None
    return tuple(shape)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of the `plain_type` of its own."""
    wanted = plain_type(column.type)
    chunks = []
    for chunk in column.chunks:
        while chunk.type != wanted:
            if isinstance(chunk.type, pa.BaseExtensionType):
                chunk = chunk.storage
            elif pa.types.is_dictionary(chunk.type):
                chunk = chunk.dictionary_decode()
            else:
                chunk = pc.run_end_decode(chunk)
        chunks.append(chunk)
    return pa.chunked_array(chunks, wanted)


def as_names(column: pa.ChunkedArray, role: Role) -> list[Any]:
    """Cells of a table as strings, blank where empty; of texts also lists of strings.

    Raises ValueError with what the column holds instead.
    """
    column = plain(column)
    kind, values = column.type, column.to_pylist()
    if pa.types.is_null(kind) or is_text(kind):
        return ["" if v is None else v for v in values]
    if is_binary(kind):
        return [_decoded(v) for v in values]
    if (
        role == "text"
        and is_list(kind)
        and (is_text(kind.value_type) or is_binary(kind.value_type))
    ):
        return [[_decoded(v) for v in cell or ()] for cell in values]
    if role == "text":
        raise ValueError(f"its cells are {what(kind)}, not texts")
    if pa.types.is_integer(kind) or (pa.types.is_boolean(kind) and role in ("label", "split")):
        return ["" if v is None else str(v) for v in values]
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        # Whole numbers with gaps are often stored so.
        if all(v is None or v != v or v == int(v) for v in values):
            return ["" if v is None or v != v else str(int(v)) for v in values]
        raise ValueError(f"its cells are {what(kind)} with fractions, not names")
    if role == "id" and pa.types.is_temporal(kind):
        return ["" if v is None else str(v) for v in values]
    raise ValueError(f"its cells are {what(kind)}, not names")


def _decoded(value: str | bytes | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return value.decode()
    except UnicodeDecodeError:
        known = format_of(value)
        raise ValueError(
            f"a cell is no UTF-8 text but bytes{f' ({known})' if known else ''}"
        ) from None


def what(kind: pa.DataType) -> str:
    """A type as a message names it."""
    if holds_files(kind):
        return f"whole files ({str(kind)[:80]})"
    text = str(kind)
    return text if len(text) <= 80 else text[:77] + "..."


def numbers(value: Any, shape: tuple[int, ...] | None) -> Any:
    """A cell of numbers -> an array of its shape, float64; raises ValueError with the cause."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its lists are not of one length, or hold what is no number") from None
    if not np.isfinite(array).all():
        # An empty place inside becomes NaN.
        raise ValueError("an empty place, NaN or an infinite value among its numbers")
    return array if shape is None else array.reshape(shape)
