"""Auxiliary shift (`text_shift`): labelled target samples move towards where the auxiliary says.

Of every class the auxiliary gives a row P_c in the target's space, by one of five ways (`ROWS`).
With M the class means of the draw and P-hat = P |M| / |P| (Frobenius), training samples become
u(z_i + kappa P-hat_{y_i}) and prototypes u(M + kappa P-hat); any head follows. kappa is the one of
`KAPPAS` with the least validation NLL of the prototypes, each at its best factor. kappa = 0 is
the head without the auxiliary, exactly; so the method switches itself off where it does not help.

Shape legend: S seeds, N labelled samples, D features of the target, E of the auxiliary, C classes,
J classes of a bank.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uml_core.errors import UserError
from uml_core.heads.bridge import Bridge
from uml_core.heads.linear import prototypes
from uml_core.heads.problem import Control, Draw, Vectors, centred, unit
from uml_core.heads.rules import Fitted, Head, Rule, best_scale

Rows = Literal["shared", "map", "bank", "both", "own"]
ROWS: tuple[Rows, ...] = ("shared", "map", "bank", "both", "own")
KAPPAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
BANK_SHARE = 0.5  # of the bank's rows beside the map's in "both"
KERNEL = 4.0  # K = exp(-KERNEL (1 - cos))
RIDGE = 1.0  # of "own"


@dataclass(frozen=True, eq=False)
class Shift:
    """rows (S, C, D): P-hat, as long as the class means; kappa (S,) how far samples move."""

    rows: Tensor
    kappa: Tensor

    def __call__(self, v: Vectors) -> Vectors:
        """The draw with its training samples moved; validation samples stay."""
        moved = v.z + self.kappa[:, None, None] * _rows_of(self.rows, v.y)
        still = (self.kappa == 0)[:, None, None]
        return dataclasses.replace(v, z=torch.where(still, v.z, unit(moved)))


def shift_of(
    draw: Draw, rows: Rows, bridge: Bridge | None = None, control: Control | None = None
) -> Shift:
    """The shift of every seed of a draw.

    bridge   what "map", "bank" and "both" need, of the same two encoders
    control  "permuted": auxiliary labels under each seed's derangement; "zero": kappa = 0
    Raises UserError where a bridge is missing or fits other features.
    """
    v = draw.vectors
    means = draw.problem.auxiliary_means(draw.seeds, control).to(v.z)
    if rows == "own":
        p, kappa = _own(v, means)
    else:
        p = auxiliary_rows(means, rows, v.z.shape[2], bridge)
        kappa = None
    p = _as_long_as(p, v.prototypes)
    if control == "zero":
        kappa = torch.zeros(len(p), dtype=p.dtype)
    return Shift(p, _best_kappa(v, p) if kappa is None else kappa)


def text_shift(
    draw: Draw,
    rows: Rows,
    head: Head = prototypes,
    bridge: Bridge | None = None,
    control: Control | None = None,
    plain: Fitted | None = None,
) -> Fitted:
    """A head on shifted samples; `prototypes` gives the rule u(M + kappa P-hat).

    plain  the same head without the auxiliary where it is known: seeds whose kappa is 0 take it
    """
    v, shift = draw.vectors, shift_of(draw, rows, bridge, control)
    moving = torch.nonzero(shift.kappa)[:, 0]
    if plain is None or len(moving) == len(shift.kappa):
        found = _fit(v, shift, head)
    elif not len(moving):
        found = plain
    else:
        part = _fit(v.only(moving), Shift(shift.rows[moving], shift.kappa[moving]), head)
        found = _replaced(plain, part, moving)
    named = [
        {**c, "kappa": float(k)} for c, k in zip(found.chosen, shift.kappa.tolist(), strict=True)
    ]
    return dataclasses.replace(found, chosen=named)


def auxiliary_rows(means: Tensor, rows: Rows, width: int, bridge: Bridge | None = None) -> Tensor:
    """P (S, C, D) centred over classes, zero for classes without auxiliary samples.

    means (S, C, E) auxiliary class means, nan for absent classes; width D.
    """
    if rows == "shared":
        if means.shape[-1] != width:
            raise UserError(
                f"the target has {width} features and the auxiliary {means.shape[-1]}: they share "
                "no space; use rows: map, bank, both or own"
            )
        return centred(unit(means))
    if bridge is None:
        raise UserError(f"rows: {rows} needs a bridge; make one with `uml bridge`, or use own")
    bridge.check_widths(width, means.shape[-1])
    if rows == "map":
        return centred(bridge.mapped(means))
    if rows == "bank":
        return centred(bridge.looked_up(means, KERNEL))
    if rows != "both":
        raise ValueError(f"unknown rows {rows!r}")
    mapped, bank = (auxiliary_rows(means, r, width, bridge) for r in ("map", "bank"))
    return mapped + BANK_SHARE * _as_long_as(bank, mapped)


def _fit(v: Vectors, shift: Shift, head: Head) -> Fitted:
    return head(shift(v))


def _replaced(plain: Fitted, part: Fitted, seeds: Tensor) -> Fitted:
    """The plain result with those of some seeds put in."""

    def put(all_: Tensor, some: Tensor) -> Tensor:
        return all_.index_copy(0, seeds, some)

    named = list(plain.chosen)
    for i, settings in zip(seeds.tolist(), part.chosen, strict=True):
        named[i] = settings
    rule = Rule(
        plain.rule.centre,
        put(plain.rule.weight, part.rule.weight),
        put(plain.rule.bias, part.rule.bias),
    )
    return Fitted(
        rule,
        put(plain.val_nll, part.val_nll),
        put(plain.val_accuracy, part.val_accuracy),
        named,
    )


def _rows_of(rows: Tensor, y: Tensor) -> Tensor:
    """rows (S, C, D), y (S, N) -> (S, N, D)."""
    return rows[torch.arange(len(rows))[:, None], y]


def _as_long_as(rows: Tensor, like: Tensor) -> Tensor:
    """rows scaled to the Frobenius norm of `like`, both (S, C, D)."""
    norm = rows.norm(dim=(1, 2), keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    return rows * (like.norm(dim=(1, 2), keepdim=True) / norm.clamp(min=tiny))


def _best_kappa(v: Vectors, p: Tensor) -> Tensor:
    """(S,) of `KAPPAS`; 0 without validation samples."""
    if not v.val_y.shape[1]:
        return torch.zeros(len(p), dtype=p.dtype)
    nll = [best_scale(v.val_z @ unit(v.prototypes + kappa * p).mT, v.val_y)[1] for kappa in KAPPAS]
    return torch.tensor(KAPPAS, dtype=p.dtype)[torch.stack(nll, 1).argmin(1)]


# -------------------------------------------------------- from the task's own classes alone


def _own(v: Vectors, means: Tensor) -> tuple[Tensor, Tensor]:
    """P (S, C, D) and kappa (S,), by leave-one-class-out kernel ridge from the others' means.

    P_c predicts M_c less the others' mean from class c's auxiliary; leaving out in closed form:
    f_{-c} = Y_c - [B Y]_c / B_cc with B = (K + ridge I)^-1, linear in the targets Y.
    """
    absent = means.isnan().any(-1)  # predicts nothing and is predicted nothing
    direction = unit(centred(means))
    kernel = torch.exp(-KERNEL * (1 - direction @ direction.mT))
    kernel = kernel.masked_fill(absent[:, None] | absent[..., None], 0)
    eye = torch.eye(v.num_classes, dtype=kernel.dtype)
    inverse = torch.linalg.inv(kernel + RIDGE * eye)
    diagonal = inverse.diagonal(dim1=1, dim2=2)[..., None]
    targets = v.prototypes
    others = (targets.sum(1, keepdim=True) - targets) / (v.num_classes - 1)
    ones = torch.ones_like(diagonal)
    left_out = targets - inverse @ targets / diagonal
    constant = ones - inverse @ ones / diagonal
    p = left_out - constant * others
    return p, _closed_kappa(v, p)


def _closed_kappa(v: Vectors, p: Tensor) -> Tensor:
    """(S,) the posterior mean's kappa: M_c ~ N(class mean, sigma^2 / k), class mean ~ N(g P, psi).

    The class means' s^2 and the samples' sigma^2 come from pairs of one class among training and
    validation samples; 0 where there are none.
    """
    z, y = torch.cat([v.z, v.val_z], 1), torch.cat([v.y, v.val_y], 1)
    member = torch.nn.functional.one_hot(y, v.num_classes).to(z)  # (S, N, C)
    counts = member.sum(1)
    sums = member.mT @ z
    centre = (sums / counts.clamp(min=1)[..., None]).mean(1, keepdim=True)
    around = sums - counts[..., None] * centre
    squares = (z - centre).square().sum(-1)  # (S, N)
    total = (squares[:, None] @ member)[:, 0]  # (S, C)
    pairs = (counts * (counts - 1)).sum(1)
    alike = (around.square().sum(-1) - total).sum(1) / pairs.clamp(min=1)
    between = alike.clamp(min=0)
    within = (squares.mean(1) - between).clamp(min=0)
    m = v.prototypes
    inner, size = (m * p).sum((1, 2)), p.square().sum((1, 2))
    tiny = torch.finfo(p.dtype).tiny
    g = inner.clamp(min=0) / size.clamp(min=tiny)
    psi = torch.maximum(between - g * inner / v.num_classes, 0.1 * between).clamp(min=tiny)
    shots = v.z.shape[1] / v.num_classes
    ratio = size.sqrt() / m.norm(dim=(1, 2)).clamp(min=tiny)
    return torch.where((pairs > 0) & (between > 0), within / shots * g / psi * ratio, 0)
