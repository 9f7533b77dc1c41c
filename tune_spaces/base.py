"""What a search space is: knobs, the recipe fields they set, and how points are drawn.

A space is one file with one object called SPACE. `uml sweep RECIPE --space NAME` finds the files
of this package by name; `--space my_space.py` takes any other file. Spaces combine by `+`.

    SPACE = Space("smoothing", "How much to smooth labels.", knobs, settings)

    def knobs(context):            # what can be turned, given the recipe and its data
        return [Knob("label smoothing", (0.0, 0.1, 0.2), target=True)]

    def settings(values, context): # a value per knob -> recipe fields
        return {"train.label_smoothing": values["label smoothing"]}
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uml_core.errors import UserError, near
from uml_core.specs import Recipe

Values = Mapping[str, Any]  # knob -> value


@dataclass(frozen=True)
class Context:
    """What a space may look at: the recipe and how many training samples each modality has."""

    recipe: Recipe
    samples: Mapping[str, int]

    @property
    def target(self) -> str:
        """The target modality."""
        return self.recipe.target

    @property
    def auxiliaries(self) -> list[str]:
        """All other modalities of the recipe, in use or not."""
        return self.recipe.auxiliaries


@dataclass(frozen=True)
class Knob:
    """One thing to turn, under the name a person reads in the report.

    values  its grid, in a sensible order; numbers or short words
    span    (low, high): random and guided search draw from the whole stretch between
    log     such draws are uniform in the logarithm
    target  it also matters without auxiliary data, so the baseline gets a tuned one as well
    """

    name: str
    values: tuple[Any, ...]
    span: tuple[float, float] | None = None
    log: bool = False
    target: bool = False

    def draw(self, rng: np.random.Generator) -> Any:
        """One random value."""
        if self.span is None:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.span
        u = float(rng.random())
        if self.log:
            return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return low + u * (high - low)


@dataclass(frozen=True)
class Point:
    """One configuration: knob values and the recipe fields they set."""

    values: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A search space.

    name, doc  as `uml sweep --help` shows them
    knobs      context -> what can be turned
    settings   (knob values, context) -> dotted recipe fields and their values
    whole      the answer needs every point trained to its end: no sampling, no early stopping
    """

    name: str
    doc: str
    knobs: Callable[[Context], Sequence[Knob]]
    settings: Callable[[Values, Context], Mapping[str, Any]]
    whole: bool = False
    parts: tuple[Space, ...] = field(default=(), repr=False)

    def __add__(self, other: Space) -> Space:
        """Both spaces at once: all pairs of their points."""
        both = (*(self.parts or (self,)), *(other.parts or (other,)))

        def knobs(context: Context) -> list[Knob]:
            return [knob for space in both for knob in space.knobs(context)]

        def settings(values: Values, context: Context) -> dict[str, Any]:
            merged: dict[str, Any] = {}
            for space in both:
                own = {k.name for k in space.knobs(context)}
                merged |= space.settings({k: v for k, v in values.items() if k in own}, context)
            return merged

        return Space(
            "+".join(s.name for s in both),
            " ".join(s.doc for s in both),
            knobs,
            settings,
            any(s.whole for s in both),
            both,
        )

    # ------------------------------------------------------------------------- points

    def point(self, values: Values, context: Context) -> Point:
        """The configuration of these knob values."""
        return Point(dict(values), dict(self.settings(values, context)))

    def grid(self, context: Context) -> list[Point]:
        """Every combination of the knobs' grids; points that set the same fields stand once."""
        knobs = self.knobs(context)
        names = [k.name for k in knobs]
        rows = itertools.product(*(k.values for k in knobs))
        return _distinct(self.point(dict(zip(names, row, strict=True)), context) for row in rows)

    def sample(self, context: Context, count: int, seed: int) -> list[Point]:
        """`count` random points, the same for the same seed; fewer where there are not so many.

        Without a knob that has a span, distinct points of the grid are drawn, so that every value
        of every knob comes about equally often.
        """
        rng = np.random.default_rng([seed, 0x5BACE])
        knobs = self.knobs(context)
        if all(k.span is None for k in knobs):
            return _spread(self.grid(context), count, rng)
        rows = ({k.name: k.draw(rng) for k in knobs} for _ in range(count))
        return _distinct(self.point(row, context) for row in rows)

    def points(self, context: Context, count: int, seed: int) -> list[Point]:
        """The whole grid where it has at most `count` points, else a sample of the space."""
        grid = self.grid(context)
        return grid if self.whole or len(grid) <= count else self.sample(context, count, seed)

    def baseline(self, point: Point, context: Context) -> Point:
        """What is left of a point without auxiliary data: knobs of the target, all ratios 0."""
        own = {k.name for k in self.knobs(context) if k.target}
        values = {name: v for name, v in point.values.items() if name in own}
        touched = {key for key in point.settings if not _auxiliary(key, context)}
        settings = {key: v for key, v in point.settings.items() if key in touched}
        settings |= {f"modalities.{name}.ratio": 0.0 for name in context.auxiliaries}
        if context.recipe.train.warmup is not None:
            settings["train.warmup"] = None
        if context.recipe.model.head_init != "random":  # class means of a modality not in use
            settings["model.head_init"] = "random"
        return Point(values, settings)

    # ------------------------------------------------------------------------- checks

    def check(self, context: Context) -> None:
        """Raises UserError where this space does not fit the recipe, with every problem."""
        problems = []
        for space in self.parts or (self,):
            knobs = space.knobs(context)
            if not knobs:
                problems.append(f"space {space.name}: this recipe has nothing it could turn")
            problems += [
                f"space {space.name}: the knob '{k.name}' has no value"
                for k in knobs
                if not k.values
            ]
        names = [k.name for k in self.knobs(context)]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            problems.append(f"space {self.name}: two knobs are called '{name}'")
        if problems:
            raise UserError(problems)
        self._check_overlap(context)

    def _check_overlap(self, context: Context) -> None:
        """No two parts of a sum may set the same field: the second would win unseen."""
        owner: dict[str, str] = {}
        problems = []
        for space in self.parts or (self,):
            keys = {key for point in space.grid(context) for key in point.settings}
            for key in sorted(keys):
                if key in owner:
                    problems.append(
                        f"spaces {owner[key]} and {space.name} both set {key}: choose one"
                    )
                owner.setdefault(key, space.name)
        if problems:
            raise UserError(problems)


def _auxiliary(key: str, context: Context) -> bool:
    """Whether a field concerns auxiliary modalities alone."""
    return key == "train.warmup" or any(
        key.startswith(f"modalities.{name}.") for name in context.auxiliaries
    )


def _spread(points: Sequence[Point], count: int, rng: np.random.Generator) -> list[Point]:
    """`count` points, each with the knob values that were used least so far; ties at random."""
    left = [points[i] for i in rng.permutation(len(points))]
    used: Counter[tuple[str, Any]] = Counter()
    kept: list[Point] = []
    while left and len(kept) < count:
        best = min(left, key=lambda point: sum(used[item] for item in point.values.items()))
        left.remove(best)
        used.update(best.values.items())
        kept.append(best)
    return [point for point in points if point in kept]


def _distinct(points: Any) -> list[Point]:
    kept: dict[str, Point] = {}
    for point in points:
        kept.setdefault(repr(sorted(point.settings.items(), key=lambda kv: kv[0])), point)
    return list(kept.values())


# ---------------------------------------------------------------------------- finding spaces


def packaged() -> dict[str, Space]:
    """Every space of this package by name."""
    import tune_spaces

    names = [m.name for m in pkgutil.iter_modules(tune_spaces.__path__) if m.name != "base"]
    return {name: importlib.import_module(f"tune_spaces.{name}").SPACE for name in sorted(names)}


def find(text: str) -> Space:
    """The space that `--space` names: a name or a .py file, several joined by `+`.

    Raises UserError with every part that is not found.
    """
    known = packaged()
    problems: list[str] = []
    found: list[Space] = []
    for part in text.split("+"):
        if part.endswith(".py"):
            found += _from_file(Path(part), problems)
        elif part in known:
            found.append(known[part])
        else:
            problems.append(
                f"no space '{part}'{near(part, known)}: give a .py file or one of "
                f"{', '.join(known)}"
            )
    if problems:
        raise UserError(problems)
    space = found[0]
    for other in found[1:]:
        space = space + other
    return space


def _from_file(path: Path, problems: list[str]) -> list[Space]:
    if not path.is_file():
        problems.append(f"no space {path}: there is no such file")
        return []
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code: whatever it raises is told
        problems.append(f"space {path}: {type(error).__name__}: {error}")
        return []
    space = getattr(module, "SPACE", None)
    if not isinstance(space, Space):
        problems.append(f"space {path}: it defines no SPACE = Space(...) (see tune_spaces/base.py)")
        return []
    return [space]
