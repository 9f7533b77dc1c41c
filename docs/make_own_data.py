"""Stands in for data of your own: writes photos/, texts.csv and clips/ into a folder.

    python docs/make_own_data.py data/raw

The content comes from the shapes world, the layout is what people usually have.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from uml_core.worlds import Drawn, open_world

CLASSES = 12
WORLD = open_world("shapes")


def draw(modality: str, per_class: int) -> Iterator[tuple[str, Drawn]]:
    """(class name, sample) of the first classes of the world."""
    for drawn in WORLD.sample(modality, "train", per_class * len(WORLD.class_names)):
        if drawn.label < CLASSES:
            yield WORLD.class_names[drawn.label], drawn


def main(folder: Path) -> None:
    """photos/<class>/<file>.png; texts.csv with text and label; clips/ with a CSV of labels."""
    for name, drawn in draw("image", 80):
        path = folder / "photos" / name / f"{drawn.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn.data)
    with open(folder / "texts.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(drawn.data.decode(), name) for name, drawn in draw("text", 80)]
        csv.writer(file).writerows([("text", "label"), *rows])
    clips = folder / "clips"
    clips.mkdir(exist_ok=True)
    labels = [("file", "label")]
    for name, drawn in draw("audio", 40):
        (clips / f"{drawn.key}.wav").write_bytes(drawn.data)
        labels.append((f"{drawn.key}.wav", name))
    with open(clips / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
