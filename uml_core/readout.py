"""How a frozen model decides: one linear rule without bias over its features, in either setting.

Supervised, it is the shared classifier; self-supervised, a linear probe on frozen features. Both
become ``lift(x) @ head.T``, so that accuracy, margins, decision planes and shifted test sets are
computed in one way. Margins compare between models only where features share a scale, so `lift`
takes the scale away and leaves every decision as it was.

Shape legend: N samples, D features, C classes, E = D (classifier) or D + 1 (probe).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.probes import ClassResult, FittedProbe, LinearProbe, checked, per_class


@dataclass(frozen=True)
class Readout:
    """scores = lift(x) @ head.T; a `FittedProbe`.

    head     (C, E)
    classes  (C,) labels of the rows of `head`
    probe    the linear probe behind it; None for the shared classifier
    """

    head: np.ndarray
    classes: np.ndarray
    probe: LinearProbe | None = None

    def lift(self, x: np.ndarray) -> np.ndarray:
        """Features (N, D) as the head takes them, free of scale: (N, E) float64.

        Classifier: of unit length, which changes no decision as the head has no bias. Probe:
        standardised, with a one for the bias.
        """
        x = np.asarray(x, np.float64)
        if self.probe is not None:
            return np.hstack([(x - self.probe.mean) / self.probe.scale, np.ones((len(x), 1))])
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1.0)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) scores."""
        return self.lift(x) @ self.head.T


def classifier_readout(learner: UnpairedLearner, name: str) -> Readout:
    """The shared classifier as modality `name` uses it. Raises UserError where there is none."""
    if learner.classifier is None:
        raise UserError("the self-supervised setting has no classifier; read out by a probe")
    head = learner.classifier.weight.detach().double().cpu().numpy()
    if learner.spec.logit_scale == "learned":
        head = head * float(learner.logit_scales[name].detach())
    return Readout(head, np.arange(len(head)))


def probe_readout(probe: LinearProbe) -> Readout:
    """A fitted linear probe."""
    return Readout(np.column_stack([probe.weight, probe.bias]), probe.classes, probe)


@dataclass(frozen=True)
class Judged:
    """What a rule reached on labelled samples.

    accuracy   percent, with a bootstrap interval over samples
    predicted  (N,) labels
    per_class  label -> recall and precision
    """

    accuracy: Estimate
    samples: int
    predicted: np.ndarray
    per_class: dict[int, ClassResult]


def judge(rule: FittedProbe, x: np.ndarray, y: np.ndarray) -> Judged:
    """Accuracy of `rule` on features x (N, D) with labels y (N,), sample by sample.

    Raises what probes raise: UserError for shapes and labels, RunError for non-finite features.
    """
    x, y = checked("test", x, y)
    predicted = rule.classes[rule.scores(x).argmax(1)]
    return Judged(percent(predicted == y), len(y), predicted, per_class(y, predicted))


def percent(correct: np.ndarray) -> Estimate:
    """Share of true entries of (N,) in percent, with a bootstrap interval over samples."""
    return bootstrap_mean(100.0 * np.asarray(correct, np.float64))


def percent_of(hits: int, total: int) -> Estimate:
    """The same from counts."""
    return percent(np.arange(total) < hits)
