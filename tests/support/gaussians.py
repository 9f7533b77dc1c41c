"""Few-shot problems of known structure: classes are Gaussians, the auxiliary a linear image."""

from __future__ import annotations

import torch

from uml_core.heads.problem import Labelled, Problem

DIMS, WIDTH = 24, 10  # of the target and of the auxiliary


def world(classes=8, bank=40, noise=0.5, seed=0):
    """(problem, bank target, bank auxiliary): classes beyond the task's are the bank's."""
    g = torch.Generator().manual_seed(seed)
    texts = torch.randn(classes + bank, WIDTH, generator=g)
    mixing = torch.randn(WIDTH, DIMS, generator=g) / WIDTH**0.5
    means = texts @ mixing

    def samples(of, count, centre, spread):
        y = torch.arange(len(of)).repeat_interleave(count)
        x = centre[of][y] + spread * torch.randn(len(y), centre.shape[1], generator=g)
        return Labelled(x, y)

    task, rest = torch.arange(classes), torch.arange(classes, classes + bank)
    problem = Problem(
        target="x",
        pool=samples(task, 30, means, noise),
        test=samples(task, 40, means, noise),
        classes=tuple(f"class {c}" for c in range(classes)),
        val=samples(task, 10, means, noise),
        auxiliary=samples(task, 6, texts, 0.1),
    )
    return problem, samples(rest, 12, means, noise), samples(rest, 6, texts, 0.1)


def accuracy(fitted, problem):
    """(S,) percent on the test set."""
    return (fitted.predict(problem.test.x) == problem.test.y).double().mean(1) * 100
