"""Multinomial logistic regression with an L2 penalty, to its optimum, for many seeds at once.

    least over W, b:  mean_i -log softmax(W z_i + b)_{y_i} + lambda/2 |W - W0|^2

The minimiser less W0 lies in the span of the samples, so few samples of many dimensions are
solved in the principal coordinates of the samples, where also the curvature is nearly diagonal.
All seeds and penalties share two batched products per step of a preconditioned L-BFGS; a seed
whose penalties have all converged leaves the batch.

Shape legend: S seeds, N samples, D features, R coordinates, L penalties, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 8  # pairs of the L-BFGS
MAX_STEPS = 1000
MAX_HALVINGS = 12
# A step that promises less of the loss than this is the last: float32 has no more to give.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def logistic_regression(
    z: Tensor,
    y: Tensor,
    penalties: Tensor,
    num_classes: int,
    prior: Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(weight (S, L, C, D), bias (S, L, C)) of every seed and penalty.

    z          (S, N, D) samples
    y          (S, N) labels; rows of -1 count nowhere
    penalties  (L,) lambda, or (L, C) one per class
    prior      (S, C, D) W0; None: zero
    """
    x, back = _coordinates(z)
    offset = None if prior is None else z @ prior.mT
    problem = _Problem.of(x, y, penalties.to(z), num_classes, offset)
    solved = _minimise(problem, tolerance or TOLERANCE[z.dtype])  # (S, L, C, R + 1)
    weight = solved[..., :-1] @ back.mT[:, None]
    return (weight if prior is None else weight + prior[:, None]), solved[..., -1]


def _coordinates(z: Tensor) -> tuple[Tensor, Tensor]:
    """(x (S, N, R), back (S, D, R)) with x = z back and orthonormal columns of back."""
    wide = z.shape[1] < z.shape[2]
    gram = z @ z.mT if wide else z.mT @ z
    values, vectors = torch.linalg.eigh(gram)
    if not wide:
        return z @ vectors, vectors
    # A direction without extent holds nothing; its inverse length would only amplify rounding.
    floor = values.amax(-1, keepdim=True) * z.shape[1] * torch.finfo(z.dtype).eps
    inverse = torch.where(values > floor, values.clamp(min=floor).rsqrt(), 0)
    back = (z.mT @ vectors) * inverse[:, None]
    return z @ back, back


@dataclass(frozen=True)
class _Problem:
    """What is minimised, of the seeds that are still running.

    x        (S, N, R + 1) with a column of ones for the bias
    y        (S, N)
    share    (S, N) of each sample in the mean
    penalty  (L, C, R + 1), none on the bias
    scale    (S, L, C, R + 1) inverse of the curvature where all classes are alike probable
    offset   (S, N, 1, C) logits of the prior, or None
    """

    x: Tensor
    y: Tensor
    share: Tensor
    penalty: Tensor
    scale: Tensor
    offset: Tensor | None

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, penalties: Tensor, num_classes: int, offset: Tensor | None
    ) -> _Problem:
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1)
        seen = (y >= 0).to(x)
        share = seen / seen.sum(1, keepdim=True)
        if penalties.dim() == 1:
            penalties = penalties[:, None].expand(-1, num_classes)
        penalty = penalties[..., None].repeat(1, 1, x.shape[2])
        penalty[..., -1] = 0
        extent = (x.square() * share[..., None]).sum(1)[:, None, None]  # (S, 1, 1, R + 1)
        scale = 1 / (extent / num_classes + penalty).clamp(min=1e-12)
        offset = None if offset is None else offset[:, :, None]
        return cls(x, y.clamp(min=0), share, penalty, scale, offset)

    def only(self, rows: Tensor) -> _Problem:
        offset = None if self.offset is None else self.offset[rows]
        parts = (self.x[rows], self.y[rows], self.share[rows])
        return _Problem(*parts, self.penalty, self.scale[rows], offset)

    def product(self, w: Tensor) -> Tensor:
        """w (S, L, C, R + 1) -> (S, N, L, C)."""
        return (self.x @ w.flatten(1, 2).mT).unflatten(2, w.shape[1:3])

    def shifted(self, product: Tensor) -> Tensor:
        return product if self.offset is None else product + self.offset

    def at(self) -> Tensor:
        """(S, N, L, 1) the right class of every row of logits."""
        return self.y[:, :, None, None].expand(-1, -1, len(self.penalty), 1)

    def loss(self, w: Tensor, logits: Tensor) -> Tensor:
        """(S, L)."""
        miss = torch.logsumexp(logits, -1) - logits.gather(-1, self.at())[..., 0]
        return (miss * self.share[..., None]).sum(1) + _dot(w, self.penalty * w) / 2

    def gradient(self, w: Tensor, logits: Tensor) -> Tensor:
        """(S, L, C, R + 1)."""
        pull = torch.softmax(logits, -1)
        pull.scatter_add_(-1, self.at(), pull.new_full((1, 1, 1, 1), -1).expand(self.at().shape))
        pull *= self.share[..., None, None]
        out = torch.addcmul(pull.new_zeros(()), self.penalty, w)
        flat = pull.flatten(2).mT @ self.x
        return out.add_(flat.view_as(w))


class _History:
    """The last steps and changes of the gradient, (S, L, C, R + 1) each."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """A pair without curvature (of a problem at rest) counts nothing."""
        curve = _dot(step, change)
        rho = torch.where(curve > 0, 1 / curve.clamp(min=1e-30), 0)
        self.pairs = [*self.pairs, (step, change, rho)][-MEMORY:]

    def keep(self, rows: Tensor) -> None:
        self.pairs = [(s[rows], c[rows], r[rows]) for s, c, r in self.pairs]

    def direction(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """The two-loop recursion."""
        q, alphas = -gradient, []
        for s, c, rho in reversed(self.pairs):
            alphas.append(rho * _dot(s, q))
            q = torch.addcmul(q, _wide(alphas[-1]), c, value=-1)
        q = q * scale
        if self.pairs:
            _, c, rho = self.pairs[-1]
            size = _dot(c, scale * c)
            q *= _wide(torch.where(rho > 0, 1 / (rho * size).clamp(min=1e-30), 1))
        for (s, c, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q = torch.addcmul(q, _wide(alpha - rho * _dot(c, q)), s)
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(S, L) inner products of (S, L, C, R + 1)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


def _wide(values: Tensor) -> Tensor:
    return values[..., None, None]


def _minimise(problem: _Problem, tolerance: float) -> Tensor:
    w = torch.zeros_like(problem.scale)
    done, active = w.clone(), torch.arange(len(w))
    product, history = problem.product(w), _History()
    logits = problem.shifted(product)
    loss, gradient = problem.loss(w, logits), problem.gradient(w, logits)
    rest = torch.ones_like(loss, dtype=torch.bool)  # whether a problem still moves
    for _ in range(MAX_STEPS):
        direction = history.direction(gradient, problem.scale)
        slope = _dot(direction, gradient)
        rest &= -slope > tolerance * loss
        running = rest.any(1)
        if not running.all():
            done[active[~running]] = w[~running]
            if not running.any():
                return done
            active, problem, rest = active[running], problem.only(running), rest[running]
            w, product, gradient = w[running], product[running], gradient[running]
            loss, direction, slope = loss[running], direction[running], slope[running]
            history.keep(running)
        moved = problem.product(direction)
        length = rest.to(w)
        for _ in range(MAX_HALVINGS):  # logits are linear in the length, so trying one is cheap
            logits = problem.shifted(product + length[:, None, :, None] * moved)
            step = _wide(length) * direction
            found = problem.loss(w + step, logits)
            bad = found > loss + 1e-4 * length * slope
            if not bad.any():
                break
            length = torch.where(bad, length / 2, length)
        else:  # rounding hides what is left to gain
            rest &= ~bad
            length = torch.where(bad, 0, length)
            logits = problem.shifted(product + length[:, None, :, None] * moved)
            step = _wide(length) * direction
            found = torch.where(bad, loss, found)
        before, w = gradient, w + step
        gradient = problem.gradient(w, logits)
        history.add(step, gradient - before)
        product, loss = product + length[:, None, :, None] * moved, found
    done[active] = w
    return done
