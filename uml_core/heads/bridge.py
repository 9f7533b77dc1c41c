"""A bridge between two encoders that never met: what classes outside the task know of both.

Of J classes there is a prototype in the target's space, made from labelled samples or taken from
a classifier's last layer, and a mean auxiliary vector (of names or descriptions). A bridge gives

    map         A (D, E): ridge from unit prototypes to unit auxiliary means; row of c: A u(t_c)
    bank rows   R (J, D): a ridge classifier, R = (S + t I)^-1 H / J, S the class-balanced second
                moment of the bank's samples, t its mean eigenvalue; row of c: sum_j K_cj R_j
    covariance  W (D, D): class-balanced, within classes, for LDA

or only a ready map. With H the prototypes, S = W + H'H / J: so classes can be left out later.

Shape legend: J classes of the bank, C of the task, N samples, D features of the target, E of the
auxiliary.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from uml_core.errors import UserError
from uml_core.heads.problem import centred, class_means, unit
from uml_core.statistics import Gain, mean_interval

FORMAT = 1
TENSORS, FACTS = "bridge.safetensors", "bridge.json"
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of unit prototypes, whose kernel has a diagonal of 1
FOLDS, REPEATS = 5, 3  # of the classes, to leave them out
FEWEST = 4  # classes of which a bridge can be made
ALIKE = 0.9  # cosine of centred auxiliary means above which two classes are near-duplicates


@dataclass(frozen=True)
class Leaving:
    """Zero-shot accuracy on classes that the map had not seen, told apart from one another.

    A fifth of the classes is left out in turn, several times. Among all J the seen classes would
    win: a ridge answers with what it was fitted on.

    accuracy  percent, mean over classes with t interval over them
    chance    percent: of one class among those left out with it
    """

    accuracy: Gain
    chance: float
    ridge: float

    @property
    def useful(self) -> bool:
        """Whether the interval lies above chance."""
        return self.accuracy.ci95 is not None and self.accuracy.ci95[0] > self.chance


@dataclass(frozen=True, eq=False)
class Bridge:
    """Made by `from_samples`, `from_classifier` or `from_map` (bridge_sources.py).

    classes     names of the bank's classes, J
    prototypes  H (J, D) and texts (J, E) of the bank; None with a ready map
    covariance  W (D, D) or None
    ready       A (D, E) or None
    centre      (E,) what is taken from unit auxiliary vectors before the map
    encoders    "target" and "auxiliary" -> what `uml embed` wrote of the encoder, where known
    leaving     None with a ready map, which cannot be told what it knows
    """

    classes: tuple[str, ...] = ()
    prototypes: Tensor | None = None
    texts: Tensor | None = None
    covariance: Tensor | None = None
    ready: Tensor | None = None
    centre: Tensor | None = None
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    leaving: Leaving | None = None

    # ------------------------------------------------------------------------- its rows

    def mapped(self, means: Tensor) -> Tensor:
        """Auxiliary class means (..., C, E) -> rows (..., C, D) by the map."""
        assert self.centre is not None
        return unit(unit(means) - self.centre.to(means)) @ self.map.to(means).mT

    def looked_up(self, means: Tensor, sharpness: float) -> Tensor:
        """The same by the bank: rows of the bank's classes, weighted by exp(-sharpness (1 - cos))
        between auxiliary means less the bank's mean."""
        if self.texts is None:
            raise UserError("this bridge is a ready map without a bank; use rows: map")
        origin = self.texts.mean(0)
        cosine = unit(means - origin) @ unit(self.texts - origin).mT
        return torch.exp(-sharpness * (1 - cosine)) @ self.rows.to(means)

    @cached_property
    def map(self) -> Tensor:
        """A (D, E)."""
        if self.ready is not None:
            return self.ready
        assert self.prototypes is not None and self.leaving is not None
        return _ridge(unit(self.prototypes), self._targets(), (self.leaving.ridge,))[0]

    @cached_property
    def rows(self) -> Tensor:
        """R (J, D)."""
        assert self.prototypes is not None
        if self.covariance is None:
            return centred(self.prototypes)
        moment = self.covariance + self.prototypes.mT @ self.prototypes / len(self.prototypes)
        t = moment.diagonal().mean()
        factor = torch.linalg.cholesky(moment + t * torch.eye(len(moment), dtype=moment.dtype))
        return torch.cholesky_solve(self.prototypes.mT, factor).mT / len(self.prototypes)

    def _targets(self) -> Tensor:
        assert self.texts is not None and self.centre is not None
        return unit(unit(self.texts) - self.centre)

    # ----------------------------------------------------------------------- what it knows

    def judged(self, z: Tensor, y: Tensor) -> Bridge:
        """The bridge with its ridge chosen, and how well it names classes it has not seen.

        z (N, D) unit vectors, y (N,) their classes.
        """
        assert self.prototypes is not None
        x, t, hits = unit(self.prototypes), self._targets(), []
        folds = min(FOLDS, len(x) // 2)
        shuffled = [np.random.default_rng(i).permutation(len(x)) for i in range(REPEATS)]
        parts = [torch.as_tensor(p) for order in shuffled for p in np.array_split(order, folds)]
        for out in parts:
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[out] = False
            mine = torch.isin(y, out)
            origin, mean = x[kept].mean(0), t[kept].mean(0)
            among = unit(t[out] - mean)
            number = torch.full((len(x),), -1)
            number[out] = torch.arange(len(out))
            for a in _ridge(x[kept], t[kept], RIDGES):
                right = ((z[mine] - origin) @ a @ among.mT).argmax(1) == number[y[mine]]
                each = right.double()[None, :, None]
                hits.append(class_means(each, number[y[mine]][None], len(out)).flatten())
        by_ridge = [torch.cat(hits[r :: len(RIDGES)]) for r in range(len(RIDGES))]
        best = max(range(len(RIDGES)), key=lambda r: float(by_ridge[r].nanmean()))
        order = torch.cat(parts)
        each = class_means(by_ridge[best][None, :, None], order[None], len(x)).flatten()
        chance = 100 * len(parts) / len(order)
        accuracy = mean_interval((100 * each[~each.isnan()]).tolist())
        return dataclasses.replace(self, leaving=Leaving(accuracy, chance, RIDGES[best]))

    def near_duplicates(
        self, classes: Sequence[str], means: Tensor | None = None
    ) -> dict[str, list[str]]:
        """Task class -> classes of the bank that may be the same thing; only those that have any.

        Two are where the words of one's name are all among the other's ("crocodile", "crocodile
        head"), or where their auxiliary means (C, E), less the bank's mean, have a cosine >= 0.9.
        """
        alike = torch.zeros(len(classes), len(self.classes), dtype=torch.bool)
        if means is not None and self.texts is not None:
            origin = self.texts.mean(0)
            alike = unit(means - origin) @ unit(self.texts - origin).mT >= ALIKE
        words = [_words(name) for name in self.classes]
        found = {}
        for name, row in zip(classes, alike.tolist(), strict=True):
            own = _words(name)
            same = [
                other
                for other, theirs, close in zip(self.classes, words, row, strict=True)
                if close or _one_holds_the_other(own, theirs)
            ]
            if same:
                found[name] = same
        return found

    def without(self, classes: Sequence[str]) -> Bridge:
        """The bridge made without these classes of its bank.

        The covariance keeps their share: it knows how samples vary, not what the classes are. The
        ridge stays; `leaving` is that of the whole bridge. Raises UserError for a ready map.
        """
        if self.prototypes is None or self.texts is None:
            raise UserError("a ready map has no bank from which classes could be left out")
        kept = [i for i, name in enumerate(self.classes) if name not in set(classes)]
        enough(len(kept))
        texts = self.texts[kept]
        return dataclasses.replace(
            self,
            classes=tuple(self.classes[i] for i in kept),
            prototypes=self.prototypes[kept],
            texts=texts,
            centre=unit(texts).mean(0),
        )

    # ------------------------------------------------------------------------- its features

    def check_widths(self, target: int, auxiliary: int) -> None:
        """Raises UserError where features of these widths cannot be this bridge's."""
        made = self.map.shape
        if tuple(made) != (target, auxiliary):
            raise UserError(
                f"the bridge joins {made[0]} features of the target and {made[1]} of the "
                f"auxiliary; yours have {target} and {auxiliary}: make one for these encoders"
            )

    def check_encoders(self, found: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Raises UserError where the weights of "target" or "auxiliary" are known to differ.

        found  role -> what the shards' index tells of their encoder, or None
        """
        problems = []
        for role, made in self.encoders.items():
            theirs = found.get(role) or {}
            a, b = made.get("weights"), theirs.get("weights")
            if a and b and a != b:
                problems.append(
                    f"the bridge was made for another encoder of the {role} (weights {a[:12]}..., "
                    f"the features' {b[:12]}...); make one with `uml bridge` from these encoders"
                )
        if problems:
            raise UserError(problems)

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Writes safetensors and JSON; `facts` (near-duplicates, sources) join the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name) for name in _HELD}
        kept = {k: v.float().contiguous() for k, v in tensors.items() if v is not None}
        save_file(kept, folder / TENSORS)
        left = self.leaving
        out = {
            "format": FORMAT,
            "classes": list(self.classes),
            "encoders": self.encoders,
            "left_out_classes": left
            and {
                "accuracy": left.accuracy.to_json(),
                "chance": left.chance,
                "ridge": left.ridge,
                "useful": left.useful,
            },
            **(facts or {}),
        }
        (folder / FACTS).write_text(json.dumps(out, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Bridge:
        """What `save` wrote. Raises UserError for a folder that is none."""
        try:
            facts = json.loads((folder / FACTS).read_text())
            tensors = load_file(folder / TENSORS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} is no bridge ({error}); make one with `uml bridge`"
            ) from None
        if facts.get("format") != FORMAT:
            raise UserError(f"{folder}: bridge format {facts.get('format')} is not {FORMAT}")
        left = facts["left_out_classes"]
        leaving = left and Leaving(Gain.from_json(left["accuracy"]), left["chance"], left["ridge"])
        held = {name: tensors.get(name) for name in _HELD}
        return cls(tuple(facts["classes"]), **held, encoders=facts["encoders"], leaving=leaving)


_HELD = ("prototypes", "texts", "covariance", "ready", "centre")


def _ridge(x: Tensor, t: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """A (D, E) of each ridge: x (J, D) to t (J, E), both less their means over J."""
    x, t = (x - x.mean(0)).double(), (t - t.mean(0)).double()
    values, axes = torch.linalg.eigh(x @ x.mT)
    back, along = x.mT @ axes, axes.mT @ t
    return [(back @ (along / (values.clamp(min=0) + r)[:, None])).float() for r in ridges]


def enough(classes: int) -> None:
    """Raises UserError for so few classes that a bridge of them tells nothing."""
    if classes < FEWEST:
        raise UserError(f"a bridge needs at least {FEWEST} classes known to both; found {classes}")


def _words(name: str) -> frozenset[str]:
    return frozenset(w.removesuffix("s") for w in re.findall(r"\w+", name.lower()))


def _one_holds_the_other(a: frozenset[str], b: frozenset[str]) -> bool:
    return bool(a and b) and (a <= b or b <= a)
