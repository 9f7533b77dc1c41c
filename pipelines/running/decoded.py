"""Raw samples -> decoded items in blocks, the next of which is decoded while this one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from pipelines.sources.inputs import Raw
from uml_core.modalities.base import BadSample

BLOCK = 256  # samples
THREADS = 4

Decode = Callable[[Any, str], Any]  # (data, suffix) -> item; raises BadSample


def decoded(
    samples: Iterable[Raw], decode: Decode, bad: list[list[str]], block: int = BLOCK
) -> Iterator[tuple[list[Raw], list[Any]]]:
    """Blocks of (raw samples without their data, their items); bad ones go to `bad` instead.

    bad: gets [url, key, error] of samples that cannot be used.
    """
    stream = iter(samples)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="uml-decode") as pool:

        def begin() -> list[tuple[Raw, Future]]:
            return [(raw, pool.submit(_one, decode, raw)) for raw in islice(stream, block)]

        waiting = begin()
        while waiting:
            following = begin()
            raws, items = [], []
            for raw, future in waiting:
                try:
                    items.append(future.result())
                    raws.append(raw)
                except BadSample as error:
                    bad.append([raw.url, raw.key, str(error)])
            if items:
                yield raws, items
            waiting = following


def _one(decode: Decode, raw: Raw) -> Any:
    if raw.data is None:
        raise BadSample(raw.error)
    return decode(raw.data, raw.suffix)
