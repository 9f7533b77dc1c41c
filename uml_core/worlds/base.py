"""What every embedded world provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from uml_core.errors import UserError, near

SPLITS = ("train", "test")


class Drawn(NamedTuple):
    """One sample: a member `<key>.<suffix>` of a shard with its label.

    source  id of the real sample it was made from; None where nothing real lies behind it
    """

    key: str
    suffix: str
    data: bytes
    label: int
    source: str | None = None


class World(ABC):
    """Several modalities over one list of classes, drawn independently: nothing is paired.

    Every (seed, modality, split) is a stream of its own. A longer draw starts with the shorter
    one, and any part of it can be drawn alone, so that shards can be made in parallel.
    """

    name: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]  # in label order
    kinds: ClassVar[Mapping[str, str]]  # modality -> its kind (uml_core.modalities.KINDS)

    @abstractmethod
    def default_size(self, modality: str, split: str) -> int:
        """Samples that `uml prepare` draws when nothing else is asked for."""

    def limit(self, modality: str, split: str) -> int | None:
        """Most samples there are; None = any number."""
        return None

    def sample(
        self, modality: str, split: str, n: int, seed: int = 0, start: int = 0
    ) -> Iterator[Drawn]:
        """Samples start .. start + n - 1 of a stream; labels are shuffled and balanced.

        Raises UserError for an unknown modality or split, a negative number, or more samples
        than there are.
        """
        problems = []
        if modality not in self.kinds:
            known = ", ".join(self.kinds)
            hint = near(modality, self.kinds)
            problems.append(f"world {self.name} has no modality '{modality}'{hint}: {known}")
        if split not in SPLITS:
            problems.append(f"no split '{split}'{near(split, SPLITS)}: {', '.join(SPLITS)}")
        for what, value in (("n", n), ("seed", seed), ("start", start)):
            if value < 0:
                problems.append(f"{what}: cannot be negative (got {value})")
        if not problems:
            most = self.limit(modality, split)
            if most is not None and start + n > most:
                problems.append(
                    f"world {self.name} holds {most} samples of {modality} {split}, "
                    f"{start + n} were asked for"
                )
        if problems:
            raise UserError(problems)
        return self._draw(modality, split, range(start, start + n), seed)

    def pairs(
        self, modalities: tuple[str, str], n: int, seed: int = 0
    ) -> Iterator[tuple[Drawn, Drawn]]:
        """At most n things, each seen in both modalities: for measurement only, never for training.

        None of them occurs in a train split. Raises UserError where the world has no such pairs.
        """
        raise UserError(f"world {self.name} cannot show one thing as {' and '.join(modalities)}")

    @abstractmethod
    def _draw(self, modality: str, split: str, rows: range, seed: int) -> Iterator[Drawn]:
        """The rows of one checked stream."""


def key(modality: str, split: str, row: int) -> str:
    """The key of a generated sample, unique within a world and seed."""
    return f"{modality}-{split}-{row:06d}"
