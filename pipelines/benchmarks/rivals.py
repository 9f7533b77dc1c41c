"""What the streams are measured against: the same decoder and batches without our pipeline.

Plain processes, one per core: each reads tars from front to back, decodes and stacks, and keeps
the batches to itself: a ceiling that no loader which delivers batches can pass. And webdataset
with `torch.utils.data.DataLoader` and as many workers. Both stay alive between measurements.
"""

from __future__ import annotations

import multiprocessing
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from uml_core.modalities import Modality

Raw = tuple[bytes, str, np.ndarray]  # a member, its suffix, random numbers for its augmentation


def cores() -> int:
    """Processes and workers that every contender gets."""
    return os.cpu_count() or 1


class PlainProcesses:
    """One process per core, each with its own shards; `take` counts the batches of all."""

    def __init__(self, urls: Sequence[str], modality: Modality, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(cores()):
            ours, theirs = context.Pipe()
            arguments = (list(urls[number :: cores()] or urls), modality, batch, theirs)
            process = context.Process(target=_plain, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def take(self, batches: int) -> int:
        """Samples made, when the processes together have made so many batches."""
        for number, pipe in enumerate(self._pipes):
            pipe.send(batches * (number + 1) // cores() - batches * number // cores())
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def _plain(urls: list[str], modality: Modality, batch: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    samples = _read(urls, modality)
    while (count := pipe.recv()) is not None:
        made = 0
        for _ in range(count):
            x, _mask = _batch(modality, [next(samples) for _ in range(batch)])
            made += len(x)
        pipe.send(made)


def _read(urls: list[str], modality: Modality) -> Iterator[Raw]:
    rng = np.random.default_rng(0)
    for url in cycle(urls):
        with tarfile.open(url, "r|", bufsize=1 << 20) as tar:
            for member in tar:
                suffix = member.name.rpartition(".")[2]
                if suffix in modality.suffixes:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read(), suffix, rng.random(modality.num_random)


def _batch(modality: Modality, samples: Sequence[Raw]) -> tuple[torch.Tensor, torch.Tensor | None]:
    items = [item for item in modality.decode_all(samples) if isinstance(item, torch.Tensor)]
    assert len(items) == len(samples)
    return modality.collate(items)


class DataLoader:
    """webdataset + torch's DataLoader: worker processes that send batches to this one."""

    def __init__(self, urls: Sequence[str], modality: Modality, batch: int) -> None:
        import webdataset

        dataset = (
            webdataset.WebDataset(
                list(urls), shardshuffle=False, empty_check=False, nodesplitter=None
            )
            .repeat()
            .map(partial(_raw, modality))
            .batched(batch, collation_fn=partial(_batch, modality), partial=False)
        )
        loader: Any = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            num_workers=cores(),
            persistent_workers=True,
            multiprocessing_context="spawn",
        )
        self._batches = iter(loader)

    def take(self, batches: int) -> int:
        """Samples that arrived here, when so many batches have."""
        return sum(len(next(self._batches)[0]) for _ in range(batches))

    def close(self) -> None:
        """Ends the workers."""
        del self._batches


def _raw(modality: Modality, sample: dict[str, Any]) -> Raw:
    suffix = next(name for name in modality.suffixes if name in sample)
    return sample[suffix], suffix, np.random.random(modality.num_random)
