"""How a fit is judged on its target modality: shared classifier, or probe on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, accuracy
from uml_core.modalities.base import Batch
from uml_core.probes import fit_linear_probe, linear_probe

Evaluate = Callable[[Fit], float]


def classifier_accuracy(name: str, batches: Sequence[Batch]) -> Evaluate:
    """Percent correct of the shared classifier; under data parallelism `batches` is a rank's part.

    Raises ValueError where no sample of any rank has a label.
    """

    def evaluate(fit: Fit) -> float:
        counts = torch.tensor(accuracy(fit.learner, name, batches), device=fit.device)
        correct, labelled = fit.world.total(counts.double()).tolist()
        if not labelled:
            raise ValueError(f"{name}: nothing to validate on, no sample has a label")
        return 100.0 * correct / labelled

    return evaluate


def probe_accuracy(
    name: str, train: Sequence[Batch], val: Sequence[Batch], grid: Sequence[float]
) -> Evaluate:
    """Percent correct on `val` of a linear probe on mean-pooled tokens (paper B.4.1)."""

    def evaluate(fit: Fit) -> float:
        train_x, train_y = embeddings(fit.learner, name, train)
        val_x, val_y = embeddings(fit.learner, name, val)
        score = math.nan
        if fit.world.rank == 0:  # one solver decides: another machine's would differ by an ulp
            score = fit_linear_probe(train_x, train_y, val_x, val_y, grid)[1]
        return fit.world.decided(score)

    return evaluate


def probe_test_accuracy(
    learner: UnpairedLearner,
    name: str,
    parts: tuple[Sequence[Batch], Sequence[Batch], Sequence[Batch]],
    grid: Sequence[float],
) -> float:
    """Percent correct on test of a linear probe chosen on validation. parts: train, val, test."""
    (train, val, test) = (embeddings(learner, name, part) for part in parts)
    result = linear_probe(*train, *val, *test, grid=grid)
    assert result.test_accuracy is not None
    return result.test_accuracy


@torch.no_grad()
def embeddings(
    learner: UnpairedLearner, name: str, batches: Sequence[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """((N, D) float32 mean-pooled representations, (N,) labels) in evaluation mode."""
    device = next(learner.parameters()).device
    training = learner.training
    learner.eval()
    x = [learner.embed(name, batch.to(device)).float().cpu() for batch in batches]
    learner.train(training)
    return torch.cat(x).numpy(), torch.cat([batch.y for batch in batches]).numpy()
