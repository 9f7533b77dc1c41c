"""What a bridge is made from: labelled samples of other classes, a classifier, a ready map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uml_core.errors import UserError
from uml_core.heads.bridge import Bridge, enough
from uml_core.heads.problem import Labelled, centred, class_means, unit

Encoders = Mapping[str, Mapping[str, Any]]


def from_samples(
    target: Labelled,
    auxiliary: Labelled,
    classes: Sequence[str],
    encoders: Encoders | None = None,
) -> Bridge:
    """A bridge from labelled samples of both modalities; classes without either are left out."""
    prototypes, texts = target.means(len(classes)), auxiliary.means(len(classes))
    have = ~(prototypes.isnan().any(1) | texts.isnan().any(1))
    enough(int(have.sum()))
    number = torch.where(have, have.cumsum(0) - 1, -1)
    y = torch.where(target.y >= 0, number[target.y.clamp(min=0)], -1)
    x, y = target.x[y >= 0], y[y >= 0]
    count = int(have.sum())
    z = unit(x - prototypes[have].mean(0))
    means = class_means(z[None], y[None], count)[0]
    sizes = torch.bincount(y, minlength=count)
    residual = (z - means[y]) / (sizes[y] * count).to(z).sqrt()[:, None]
    bridge = _bank(
        [name for name, kept in zip(classes, have.tolist(), strict=True) if kept],
        means,
        texts[have],
        encoders,
        residual.mT @ residual,
    )
    return bridge.judged(z, y)


def from_classifier(
    weight: Tensor, texts: Tensor, classes: Sequence[str], encoders: Encoders | None = None
) -> Bridge:
    """A bridge from an encoder's last layer.

    weight (J, D) its rows over the features; texts (J, E) auxiliary vectors of the categories
    """
    if not len(weight) == len(texts) == len(classes):
        raise UserError(
            f"{len(weight)} rows of the classifier, {len(texts)} auxiliary vectors and "
            f"{len(classes)} names must belong to the same categories"
        )
    enough(len(weight))
    bridge = _bank(classes, centred(weight.float()), texts.float(), encoders)
    assert bridge.prototypes is not None
    return bridge.judged(unit(bridge.prototypes), torch.arange(len(weight)))


def from_map(source: Path | Mapping[str, np.ndarray], encoders: Encoders | None = None) -> Bridge:
    """A ready map: an npz with A (D, E) and the centre em (E,) of unit auxiliary vectors.

    Raises UserError for a file that does not hold these, or not finite.
    """
    if isinstance(source, Path):
        try:
            with np.load(source, allow_pickle=False) as opened:
                held = {k: opened[k] for k in opened.files}
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read as an npz: {error}") from None
    else:
        held = dict(source)
    if not {"A", "em"} <= held.keys():
        raise UserError(f"a map needs the arrays A and em; found {', '.join(held) or 'none'}")
    a, em = (torch.from_numpy(np.asarray(held[k], dtype=np.float32)) for k in ("A", "em"))
    if a.dim() != 2 or em.shape != a.shape[1:] or not (a.isfinite().all() and em.isfinite().all()):
        raise UserError("a map needs A (D, E) and em (E,), all values finite")
    return Bridge(ready=a, centre=em, encoders=encoders or {})


def _bank(
    classes: Sequence[str],
    prototypes: Tensor,
    texts: Tensor,
    encoders: Encoders | None,
    covariance: Tensor | None = None,
) -> Bridge:
    return Bridge(
        tuple(classes),
        prototypes,
        texts,
        covariance,
        centre=unit(texts).mean(0),
        encoders=encoders or {},
    )
