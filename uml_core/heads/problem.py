"""A few-shot problem over frozen features: its samples, and what each seed draws from them.

The roles are target (judged, few labels) and auxiliary (other features, sharing only classes).
Methods see the target as u(x - m) with u(v) = v / |v| and m the mean of the labelled class means;
whatever they fit is linear in that vector, so one `Rule` (rules.py) says what any of them found.

Shape legend: S seeds, N labelled samples of a draw, V validation samples, T test samples,
D features of the target, E of the auxiliary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uml_core.controls import derangement
from uml_core.errors import UserError
from uml_core.probes import few_shot_split, few_val

Control = Literal["permuted", "zero"]
ValShots = Literal["matched"] | int | None


@dataclass(frozen=True)
class Labelled:
    """Features x (N, D) float and labels y (N,) int64, -1 = none."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dim() != 2 or self.y.shape != self.x.shape[:1]:
            shapes = f"{tuple(self.x.shape)} and {tuple(self.y.shape)}"
            raise UserError(f"features must be (N, D) and labels (N,); they are {shapes}")
        if not bool(torch.isfinite(self.x).all()):
            raise UserError("some features are not finite; run `uml verify` on their shards")

    def __len__(self) -> int:
        return len(self.y)

    def means(self, num_classes: int) -> Tensor:
        """(C, D) mean vector of every class; rows of nan for classes without a sample."""
        return class_means(self.x[None], self.y[None], num_classes)[0]


@dataclass(frozen=True)
class Problem:
    """What all seeds and numbers of shots share.

    target      the recipe's name of the target modality: draws depend on it
    pool        target samples that training draws from
    test        target samples that judge; no method fits on them
    val         the target's own validation samples; None: draws take them from the pool
    auxiliary   samples of the other modality, of the same classes
    unlabelled  (U, D) further target samples without labels
    classes     names in label order
    auxiliary_shots  (the auxiliary modality's name, samples per class that a seed draws from it);
                     None: all
    """

    target: str
    pool: Labelled
    test: Labelled
    classes: tuple[str, ...]
    val: Labelled | None = None
    auxiliary: Labelled | None = None
    unlabelled: Tensor | None = None
    auxiliary_shots: tuple[str, int] | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @cached_property
    def samples(self) -> Labelled:
        """Pool, then validation samples: the rows that draws name."""
        if self.val is None:
            return self.pool
        return Labelled(torch.cat([self.pool.x, self.val.x]), torch.cat([self.pool.y, self.val.y]))

    def on(self, dims: Tensor) -> Problem:
        """The target alone on dims: a mask (D,) or indices (d,) of its dimensions; no auxiliary."""

        def cut(part: Labelled) -> Labelled:
            return Labelled(part.x[:, dims].contiguous(), part.y)

        return dataclasses.replace(
            self,
            pool=cut(self.pool),
            test=cut(self.test),
            val=None if self.val is None else cut(self.val),
            unlabelled=None if self.unlabelled is None else self.unlabelled[:, dims].contiguous(),
            auxiliary=None,
        )

    def unshared(self) -> Tensor:
        """(D,) mask of target dimensions in which a same-space auxiliary never varies.

        All False without an auxiliary of the target's width.
        """
        width = self.pool.x.shape[1]
        if self.auxiliary is None or self.auxiliary.x.shape[1] != width:
            return torch.zeros(width, dtype=torch.bool)
        x = self.auxiliary.x
        return x.amax(0) == x.amin(0)

    def draw(
        self, shots: int | None, seeds: Sequence[int], val_shots: ValShots = "matched"
    ) -> Draw:
        """The rows of all seeds at one number of shots, as every job of this project draws them.

        val_shots  of an own validation set: samples per class, "matched" = min(4, shots), None =
                   all. Without such a set min(4, shots) per class come from the pool, or 10 %
                   where all samples are used.
        Raises UserError naming every class with too few samples.
        """
        if self.val is not None and val_shots == "matched":
            val_shots = None if shots is None else few_val(shots)
        train, val = [], []
        for seed in seeds:
            own = self.val is not None
            at, rest = few_shot_split(
                self.pool.y.numpy(),
                shots,
                seed,
                0 if own else None,
                self.classes,
                modality=self.target,
            )
            if self.val is not None:
                assert val_shots != "matched"
                rest = _few(self.val, val_shots, seed, self.classes, self.target) + len(self.pool)
            train.append(torch.as_tensor(at))
            val.append(torch.as_tensor(rest))
        return Draw(self, shots, tuple(seeds), torch.stack(train), torch.stack(val))

    def auxiliary_means(self, seeds: Sequence[int], control: Control | None = None) -> Tensor:
        """(S, C, E) mean auxiliary vector of each class; rows of nan for absent classes.

        With control "permuted", class c's samples carry the label derangement(C, seed)[c].
        """
        if self.auxiliary is None:
            raise UserError("this method needs an auxiliary modality; the recipe names none")
        if self.auxiliary_shots is None:
            means = self.auxiliary.means(self.num_classes).expand(len(seeds), -1, -1)
        else:
            name, shots = self.auxiliary_shots
            drawn = [_few(self.auxiliary, shots, s, self.classes, name) for s in seeds]
            parts = [Labelled(self.auxiliary.x[at], self.auxiliary.y[at]) for at in drawn]
            means = torch.stack([part.means(self.num_classes) for part in parts])
        if control != "permuted":
            return means
        out = torch.empty_like(means)
        for i, seed in enumerate(seeds):
            out[i, torch.from_numpy(derangement(self.num_classes, seed))] = means[i]
        return out


@dataclass(frozen=True)
class Draw:
    """Rows of `problem.samples`: train (S, N) and val (S, V) of all seeds at one k."""

    problem: Problem
    shots: int | None
    seeds: tuple[int, ...]
    train: Tensor
    val: Tensor

    def merged(self) -> Draw:
        """The draw whose training samples are those of training and validation together."""
        both = torch.cat([self.train, self.val], dim=1)
        return dataclasses.replace(self, train=both)

    @cached_property
    def vectors(self) -> Vectors:
        """The samples as methods see them."""
        at = self.problem.samples
        x, y = at.x[self.train], at.y[self.train]
        means = class_means(x, y, self.problem.num_classes)
        centre = torch.nanmean(means, 1)  # a class may lack samples where all of them are used
        z = unit(x - centre[:, None])
        val = unit(at.x[self.val] - centre[:, None])
        return Vectors(centre, z, y, val, at.y[self.val], self.problem.num_classes)


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a head is fitted on.

    centre (S, D) is m; z (S, N, D), y (S, N) train; val_z (S, V, D), val_y (S, V) validate.
    """

    centre: Tensor
    z: Tensor
    y: Tensor
    val_z: Tensor
    val_y: Tensor
    num_classes: int

    @cached_property
    def prototypes(self) -> Tensor:
        """M (S, C, D): class means of z, less their mean over classes; zero for absent classes."""
        return centred(class_means(self.z, self.y, self.num_classes))

    def only(self, seeds: Tensor) -> Vectors:
        """The samples of seeds (s,), indices into the S."""
        return Vectors(
            self.centre[seeds],
            self.z[seeds],
            self.y[seeds],
            self.val_z[seeds],
            self.val_y[seeds],
            self.num_classes,
        )


# -------------------------------------------------------------------------------- small tools


def unit(v: Tensor) -> Tensor:
    """v (..., D) over its norm; a zero vector stays zero."""
    return F.normalize(v, dim=-1, eps=torch.finfo(v.dtype).tiny)


def class_means(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """x (S, N, D), y (S, N) -> (S, C, D); nan for classes without a sample, y = -1 is none."""
    member = (y[:, None] == torch.arange(num_classes)[:, None]).to(x.dtype)  # (S, C, N)
    return (member @ x) / member.sum(-1, keepdim=True)


def centred(rows: Tensor) -> Tensor:
    """rows (..., C, D) less their mean over classes; absent classes (nan) become zero."""
    return torch.nan_to_num(rows - torch.nanmean(rows, -2, keepdim=True))


def _few(
    part: Labelled, shots: int | None, seed: int, classes: Sequence[str], modality: str
) -> Any:
    """Rows of so many samples of every class that occurs; None: all labelled ones."""
    y = part.y.numpy()
    if shots is None:
        return (y >= 0).nonzero()[0]
    return few_shot_split(y, shots, seed, 0, classes, modality=modality, allow_absent=True)[0]
