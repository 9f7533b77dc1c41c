"""The digits world: real scanned digits, their ink column by column, and number words.

Pictures and column series come from the 1797 scans of scikit-learn's `load_digits` (UCI optical
recognition of handwritten digits, 8 x 8 pixels). No scan serves two modalities or two splits, so
nothing is paired and nothing leaks.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from uml_core.worlds.base import Drawn, World, key
from uml_core.worlds.draws import Ints, stream

# Scans per class; the rarest class has 174.
SCANS = {
    ("image", "train"): 60,
    ("image", "test"): 40,
    ("sequence", "train"): 54,
    ("sequence", "test"): 20,
}
TEXT_TEST = 4  # spellings per class kept for the test split
INK = 16  # largest value of a scan

# zero to nine; accents as they are written
NUMBER_WORDS = {
    "Basque": "zero bat bi hiru lau bost sei zazpi zortzi bederatzi",
    "Czech": "nula jedna dva tři čtyři pět šest sedm osm devět",
    "Danish": "nul en to tre fire fem seks syv otte ni",
    "Dutch": "nul een twee drie vier vijf zes zeven acht negen",
    "English": "zero one two three four five six seven eight nine",
    "Estonian": "null üks kaks kolm neli viis kuus seitse kaheksa üheksa",
    "Finnish": "nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän",
    "French": "zéro un deux trois quatre cinq six sept huit neuf",
    "German": "null eins zwei drei vier fünf sechs sieben acht neun",
    "Greek": "μηδέν ένα δύο τρία τέσσερα πέντε έξι επτά οκτώ εννέα",
    "Hungarian": "nulla egy kettő három négy öt hat hét nyolc kilenc",
    "Icelandic": "núll einn tveir þrír fjórir fimm sex sjö átta níu",
    "Indonesian": "nol satu dua tiga empat lima enam tujuh delapan sembilan",
    "Italian": "zero uno due tre quattro cinque sei sette otto nove",
    "Latin": "nihil unus duo tres quattuor quinque sex septem octo novem",
    "Latvian": "nulle viens divi trīs četri pieci seši septiņi astoņi deviņi",
    "Lithuanian": "nulis vienas du trys keturi penki šeši septyni aštuoni devyni",
    "Polish": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć",
    "Portuguese": "zero um dois três quatro cinco seis sete oito nove",
    "Romanian": "zero unu doi trei patru cinci șase șapte opt nouă",
    "Russian": "ноль один два три четыре пять шесть семь восемь девять",
    "Slovenian": "nič ena dva tri štiri pet šest sedem osem devet",
    "Spanish": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "Swahili": "sifuri moja mbili tatu nne tano sita saba nane tisa",
    "Swedish": "noll ett två tre fyra fem sex sju åtta nio",
    "Turkish": "sıfır bir iki üç dört beş altı yedi sekiz dokuz",
    "Ukrainian": "нуль один два три чотири п'ять шість сім вісім дев'ять",
    "Welsh": "dim un dau tri pedwar pump chwech saith wyth naw",
}


class DigitsWorld(World):
    """Ten classes: scans as pictures, other scans as column series, number words as text.

    Series are (T, 8) floats in 0..1, one step per column of ink from left to right, 4 <= T <= 8.
    `seed` decides which scans and words fall to which modality and split.
    """

    name = "digits"
    class_names = tuple(NUMBER_WORDS["English"].split())
    kinds = {"image": "image", "sequence": "sequence", "text": "text"}  # noqa: RUF012

    def default_size(self, modality: str, split: str) -> int:
        most = self.limit(modality, split)
        assert most is not None
        return most

    def limit(self, modality: str, split: str) -> int | None:
        if modality != "text":
            return 10 * SCANS[modality, split]
        rarest = min(len(words) for words in spellings())
        return 10 * (TEXT_TEST if split == "test" else rarest - TEXT_TEST)

    def _draw(self, modality: str, split: str, rows: range, seed: int) -> Iterator[Drawn]:
        table = self._table(modality, split, seed)
        rng = stream(seed, *_path(modality, split))
        order = rng.permuted(np.tile(np.arange(10), (table.shape[1], 1)), axis=1).reshape(-1)
        for row in rows:
            label = int(order[row])
            number = int(table[label, row // 10])
            name = key(modality, split, row)
            if modality == "text":
                yield Drawn(name, "txt", spellings()[label][number].encode(), label)
                continue
            yield _scan(modality, number, name, label)

    def pairs(
        self, modalities: tuple[str, str], n: int, seed: int = 0
    ) -> Iterator[tuple[Drawn, Drawn]]:
        """One scan as a picture and as its columns of ink: those of the pictures' test split."""
        if set(modalities) != {"image", "sequence"}:
            return super().pairs(modalities, n, seed)
        return self._pairs(modalities, n, seed)

    def _pairs(
        self, modalities: tuple[str, str], n: int, seed: int
    ) -> Iterator[tuple[Drawn, Drawn]]:
        table = self._table("image", "test", seed)
        for row, (place, label) in enumerate(np.ndindex(table.shape[1], table.shape[0])):
            if row >= n:
                return
            number = int(table[label, place])
            name = key("pair", "test", row)
            one, other = (_scan(modality, number, name, label) for modality in modalities)
            yield one, other

    def _table(self, modality: str, split: str, seed: int) -> Ints:
        """(10, samples per class): numbers of the scans (or spellings) of one stream."""
        rows = []
        for label in range(10):
            rng = stream(seed, label)
            if modality == "text":
                order = rng.permutation(len(spellings()[label]))
                used = self.limit(modality, "train")
                cut = (used or 0) // 10
                rows.append(order[:cut] if split == "train" else order[-TEXT_TEST:])
                continue
            order = rng.permutation(np.flatnonzero(scans()[1] == label))
            first = 0
            for stream_of, count in SCANS.items():
                if stream_of == (modality, split):
                    rows.append(order[first : first + count])
                first += count
        return np.stack(rows)


def _scan(modality: str, number: int, name: str, label: int) -> Drawn:
    """A scan as a picture or as a series of its columns."""
    scan = scans()[0][number]
    suffix, data = ("png", _png(scan)) if modality == "image" else ("npy", _columns(scan))
    return Drawn(name, suffix, data, label, f"optdigits-{number:04d}")


def _path(modality: str, split: str) -> tuple[int, int]:
    return 10 + list(DigitsWorld.kinds).index(modality), int(split == "test")


@functools.cache
def scans() -> tuple[NDArray[np.float64], Ints]:
    """(1797, 8, 8) ink from 0 to 16, and the labels (1797,)."""
    data = load_digits()
    return data.images, data.target


@functools.cache
def spellings() -> list[list[str]]:
    """The different spellings of each digit, none of which names two digits."""
    per_class = [set[str]() for _ in range(10)]
    for line in NUMBER_WORDS.values():
        for words, word in zip(per_class, line.split(), strict=True):
            words.add(word)
    return [sorted(words) for words in per_class]


def _png(scan: NDArray[np.float64]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.rint(scan * (255 / INK)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _columns(scan: NDArray[np.float64]) -> bytes:
    """npy bytes of (T, 8): the columns of ink, blank ones at both ends left out."""
    columns = (scan.T / INK).astype(np.float32)
    inked = np.flatnonzero(columns.any(1))
    out = io.BytesIO()
    np.save(out, columns[inked[0] : inked[-1] + 1], allow_pickle=False)
    return out.getvalue()
