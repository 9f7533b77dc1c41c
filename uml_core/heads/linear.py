"""Heads on the target alone: logistic regression, LDA, nearest mean, and two without validation.

Each is a `Head`: it takes the `Vectors` of a draw and returns a `Fitted`. Settings are chosen per
seed on validation NLL, every candidate scaled by the factor that suits validation best.

Shape legend: S seeds, N labelled samples, D features, C classes, Q candidates of a setting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uml_core.heads.logistic import logistic_regression
from uml_core.heads.problem import Draw, Vectors, class_means, unit
from uml_core.heads.rules import Fitted, Head, best_scale, judged

PENALTIES = (1e-3, 1e-4, 1e-5)
SHRINKAGE = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03)  # 1 = nearest mean
FREE_PENALTY = 1e-3  # of a head that nothing validates


def logistic(v: Vectors, penalties: Sequence[float] = PENALTIES) -> Fitted:
    """Regularised multinomial logistic regression; the penalty is chosen on validation."""
    weight, bias = logistic_regression(v.z, v.y, torch.tensor(penalties), v.num_classes)
    return chosen(v, weight, bias, "penalty", penalties)


def prototypes(v: Vectors) -> Fitted:
    """Nearest class mean by cosine; nothing to choose."""
    weight = unit(v.prototypes)
    return judged(v, weight, weight.new_zeros(weight.shape[:2]), [{} for _ in weight])


def lda(
    v: Vectors, covariance: Tensor | None = None, shrinkage: Sequence[float] = SHRINKAGE
) -> Fitted:
    """Linear discriminants (s t I + (1 - s) W)^-1 M, t the mean eigenvalue of W.

    covariance  (D, D) within-class covariance W of unit vectors, of other classes (`Bridge`);
                None: pooled over the labelled samples, hence nearest mean at one per class
    """
    means = v.prototypes
    if covariance is None:
        weight = _pooled(v, means, shrinkage)
    else:
        values, vectors = torch.linalg.eigh(covariance.to(means))
        weight = torch.stack([_solved(values, vectors, means, s) for s in shrinkage], 1)
    origin = torch.nanmean(class_means(v.z, v.y, v.num_classes), 1)[:, None, None]
    bias = -(weight * (means[:, None] / 2 + origin)).sum(-1)  # classes are equally probable
    return chosen(v, weight, bias, "shrinkage", shrinkage)


def _solved(values: Tensor, vectors: Tensor, means: Tensor, s: float) -> Tensor:
    """(S, C, D) discriminants, W = vectors diag(values) vectors'."""
    t = values.mean(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    scale = 1 / (s + (1 - s) * values.clamp(min=0) / t)
    return (means @ vectors * scale[..., None, :]) @ vectors.mT


def _pooled(v: Vectors, means: Tensor, shrinkage: Sequence[float]) -> Tensor:
    """(S, Q, C, D) discriminants of the labelled samples' own covariance."""
    values, axes, t = _residual_axes(v)
    along = means @ axes
    out = []
    for s in shrinkage:
        scale = 1 / (s + (1 - s) * values / t) - 1 / s  # beyond 1/s, which all directions have
        out.append(means / s + (along * scale[:, None]) @ axes.mT)
    return torch.stack(out, 1)


def _residual_axes(v: Vectors) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (S, R), axes (S, D, R) and mean eigenvalue (S, 1) of the pooled covariance."""
    member = torch.nn.functional.one_hot(v.y, v.num_classes).to(v.z)
    counts = member.sum(1)
    own = (member.mT @ v.z) / counts.clamp(min=1)[..., None]
    residual = v.z - member @ own
    freedom = (v.z.shape[1] - (counts > 0).sum(1)).clamp(min=1).to(v.z)
    wide = v.z.shape[1] < v.z.shape[2]
    gram = residual @ residual.mT if wide else residual.mT @ residual
    values, axes = torch.linalg.eigh(gram)
    floor = values.amax(-1, keepdim=True).clamp(min=1e-12) * 1e-5
    values = torch.where(values > floor, values, 0)
    if wide:
        inverse = torch.where(values > 0, values.clamp(min=1e-30).rsqrt(), 0)
        axes = (residual.mT @ axes) * inverse[:, None]
    values = values / freedom[:, None]
    tiny = torch.finfo(values.dtype).tiny
    return values, axes, (values.sum(-1, keepdim=True) / v.z.shape[2]).clamp(min=tiny)


def chosen(v: Vectors, weight: Tensor, bias: Tensor, name: str, values: Sequence[float]) -> Fitted:
    """Of Q candidates the one with the least validation NLL; ties and no validation: the first.

    weight (S, Q, C, D), bias (S, Q, C), values (Q,) of the setting called `name`.
    """
    best = torch.zeros(len(weight), dtype=torch.int64)
    if v.val_y.shape[1]:
        nll = [
            best_scale(v.val_z @ weight[:, q].mT + bias[:, q, None], v.val_y)[1]
            for q in range(len(values))
        ]
        best = torch.stack(nll, 1).argmin(1)
    rows = torch.arange(len(weight))
    settings = [{name: values[q]} for q in best.tolist()]
    return judged(v, weight[rows, best], bias[rows, best], settings)


# ------------------------------------------------------------------- heads without validation


def without_validation(draw: Draw, head: Head) -> Fitted:
    """A head that chooses nothing, fitted on training and validation samples together.

    Its validation values are nan: no sample is left to say how good it is.
    """
    v = draw.merged().vectors
    nothing = Vectors(v.centre, v.z, v.y, v.val_z[:, :0], v.val_y[:, :0], v.num_classes)
    return head(nothing)


def free_logistic(v: Vectors) -> Fitted:
    """Logistic regression at one fixed penalty."""
    return logistic(v, (FREE_PENALTY,))


def clap(v: Vectors, rows: Tensor) -> Fitted:
    """Logistic regression held to class rows, each as firmly as they explain its samples.

    rows (S, C, D): auxiliary rows in the target's space (`aux_shift.Rows`), of any length. As in
    CLAP (arXiv 2312.12730) the penalty of class c is its samples' mean probability under the rows
    alone; here it multiplies `FREE_PENALTY` times C, so that rows at chance hold like zero ones.
    The rows' length is that of the least training NLL; rows of no use end near zero.
    """
    rows = unit(rows)
    factor, _ = best_scale(v.z @ rows.mT, v.y)
    prior = rows * factor.to(rows).clamp(min=0)[:, None, None]
    right = torch.softmax(v.z @ prior.mT, -1).gather(-1, v.y[..., None])[..., 0]
    member = torch.nn.functional.one_hot(v.y, v.num_classes).to(right)
    trust = (right[:, None] @ member)[:, 0] / member.sum(1).clamp(min=1)  # (S, C)
    found = [
        logistic_regression(
            v.z[i : i + 1],
            v.y[i : i + 1],
            FREE_PENALTY * v.num_classes * trust[i : i + 1],
            v.num_classes,
            prior[i : i + 1],
        )
        for i in range(len(trust))
    ]
    weight = torch.cat([w[:, 0] for w, _ in found])
    bias = torch.cat([b[:, 0] for _, b in found])
    settings = [
        {"scale": float(f), "trust": float(t.mean())} for f, t in zip(factor, trust, strict=True)
    ]
    return judged(v, weight, bias, settings)
