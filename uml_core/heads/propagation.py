"""Label propagation over unlabelled target samples, then EM on the sphere.

A graph of the 10 nearest neighbours, weights cos^3, carries the labels of the few labelled samples
to the others (F <- alpha S F + (1 - alpha) Y with S = D^-1/2 A D^-1/2); the masses of the classes
are made equal and the soft labels sharpened. They give prototypes, and EM refines these together
with the classes' prior. The rule that results judges samples that no step has seen. Validation
samples are no part of the graph, so that they can choose.

With an auxiliary shift the labelled samples stand in EM where the shift moves them, and the soft
labels that EM starts from are multiplied by what the shifted prototypes u(M + kappa P-hat) say.

Shape legend: S seeds, G samples of the graph, N labelled samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from uml_core.errors import UserError
from uml_core.heads.aux_shift import Shift
from uml_core.heads.linear import chosen
from uml_core.heads.problem import Draw, Vectors, unit
from uml_core.heads.rules import Fitted, Rule

NEIGHBOURS = 10
ALPHA = 0.95
ROUNDS = 50
SHARPER = 4.0  # power of the propagated soft labels
TEMPERATURES = (12.0, 16.0, 24.0)
UNLABELLED_WEIGHT = 0.3
EM_ROUNDS = 8
BLOCK = 1024  # rows of similarities at once


@dataclass(frozen=True, eq=False)
class Graph:
    """What propagation leaves for EM: it depends on the draw alone, not on any shift.

    z        (G, D) unit vectors of the graph, less the mean of all
    centre   (D,) that mean
    nodes    of each seed: which of the G it may use, labelled ones included
    labels   (S, G) int64, -1 where unlabelled
    soft     (S, G, C) propagated, each row a distribution; zero outside the seed's nodes
    """

    z: Tensor
    centre: Tensor
    nodes: Tensor
    labels: Tensor
    soft: Tensor


def propagated(draw: Draw, rest: bool = False) -> Graph:
    """Propagates the labels of every seed.

    rest  samples of the pool that a seed does not draw count as unlabelled ones
    Raises UserError where there are no unlabelled samples at all.
    """
    problem, at = draw.problem, draw.problem.samples
    more = problem.unlabelled
    if more is None and not rest:
        raise UserError("label propagation needs unlabelled target samples; the recipe names none")
    x = at.x if more is None else torch.cat([at.x, more])
    nodes = torch.zeros(len(draw.seeds), len(x), dtype=torch.bool)
    nodes[:, len(at) :] = True
    nodes[:, : len(problem.pool)] = rest
    nodes.scatter_(1, draw.val, False)
    nodes.scatter_(1, draw.train, True)
    labels = torch.full(nodes.shape, -1)
    labels.scatter_(1, draw.train, at.y[draw.train])
    used = nodes.any(0)  # the others' features have no part in the mean
    x, nodes, labels = x[used], nodes[:, used], labels[:, used]
    centre = x.mean(0)
    z = unit(x - centre)
    kinds, of = torch.unique(nodes, dim=0, return_inverse=True)
    soft = torch.zeros(len(nodes), len(x), problem.num_classes)
    for i, kind in enumerate(kinds):
        here = torch.nonzero(kind)[:, 0]
        seeds = torch.nonzero(of == i)[:, 0]
        found = _spread(_adjacency(z[here]), labels[seeds][:, here], problem.num_classes)
        soft[seeds[:, None], here] = found
    return Graph(z, centre, nodes, labels, soft)


def label_propagation(
    draw: Draw,
    graph: Graph,
    shift: Shift | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Fitted:
    """Prototypes by EM from the propagated labels; the temperature is chosen on validation NLL.

    graph  `propagated(draw)`: one serves every shift of a draw
    shift  moves the labelled samples (aux_shift.shift_of); where its kappa is 0 nothing changes
    """
    size = len(draw.seeds)
    centre = graph.centre.expand(size, -1)
    found: list[Fitted] = []
    for i in range(size):
        v = _one(draw, graph, i)
        here = graph.nodes[i] & (graph.labels[i] < 0)
        free, soft, moved = graph.z[here], graph.soft[i, here], v
        if shift is not None and shift.kappa[i] > 0:
            moved = Shift(shift.rows[i : i + 1], shift.kappa[i : i + 1])(v)
            shifted = unit(v.prototypes[0] + shift.kappa[i] * shift.rows[i])
            soft = soft * torch.softmax(max(TEMPERATURES) * (free @ shifted.mT), 1)
            soft = soft / soft.sum(1, keepdim=True).clamp(min=1e-12)
        found.append(_em(moved, v, free, soft, temperatures))
    rule = Rule(
        centre,
        torch.cat([f.rule.weight for f in found]),
        torch.cat([f.rule.bias for f in found]),
    )
    named = [settings for f in found for settings in f.chosen]
    if shift is not None:
        pairs = zip(named, shift.kappa.tolist(), strict=True)
        named = [{**settings, "kappa": float(k)} for settings, k in pairs]
    nll = torch.cat([f.val_nll for f in found])
    return Fitted(rule, nll, torch.cat([f.val_accuracy for f in found]), named)


def _one(draw: Draw, graph: Graph, i: int) -> Vectors:
    """One seed's samples, about the graph's centre."""
    at, c = draw.problem.samples, graph.centre
    train, val = draw.train[i : i + 1], draw.val[i : i + 1]
    parts = (unit(at.x[train] - c), at.y[train], unit(at.x[val] - c), at.y[val])
    return Vectors(c[None], *parts, draw.problem.num_classes)


# ------------------------------------------------------------------------------- the graph


def _adjacency(z: Tensor) -> sparse.csr_matrix:
    """S = D^-1/2 A D^-1/2 (G, G) of the symmetrised neighbours' cos^3."""
    count = min(NEIGHBOURS, len(z) - 1)
    near, weight = [], []
    for start in range(0, len(z), BLOCK):
        cosine = z[start : start + BLOCK] @ z.mT
        rows = torch.arange(len(cosine))
        cosine[rows, rows + start] = -2
        top = cosine.topk(count, dim=1)
        near.append(top.indices)
        weight.append(top.values.clamp(min=0) ** 3)
    to = torch.cat(near).flatten().numpy()
    values = torch.cat(weight).flatten().numpy().astype(np.float32)
    begin = np.arange(len(z) + 1) * count
    a = sparse.csr_matrix((values, to, begin), shape=(len(z), len(z)))
    a = a + a.T
    degree = np.asarray(a.sum(1)).ravel()
    half = sparse.diags(1 / np.sqrt(np.maximum(degree, 1e-12)).astype(np.float32))
    return (half @ a @ half).tocsr()


def _spread(a: sparse.csr_matrix, labels: Tensor, num_classes: int) -> Tensor:
    """labels (S, G) -> (S, G, C) distributions; all seeds in one product per round."""
    given = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes).float()
    given *= (labels >= 0)[..., None]
    y = given.transpose(0, 1).reshape(labels.shape[1], -1).numpy()
    f = y
    for _ in range(ROUNDS):
        f = ALPHA * (a @ f) + (1 - ALPHA) * y
    soft = torch.from_numpy(f).view(labels.shape[1], -1, num_classes).transpose(0, 1)
    soft = soft / soft.sum(1, keepdim=True).clamp(min=1e-12)  # every class has the same mass
    return soft / soft.sum(2, keepdim=True).clamp(min=1e-12)


# ----------------------------------------------------------------------------------- EM


def _em(
    moved: Vectors, v: Vectors, free: Tensor, soft: Tensor, temperatures: Sequence[float]
) -> Fitted:
    """EM of one seed. free (U, D) unlabelled vectors, soft (U, C) their propagated labels."""
    member = torch.nn.functional.one_hot(moved.y[0], v.num_classes).to(free)
    pull = member.mT @ moved.z[0]  # (C, D): what the labelled samples say, at weight 1
    sharp = soft**SHARPER
    sharp = sharp / sharp.sum(1, keepdim=True).clamp(min=1e-12)
    tried = []
    for temperature in temperatures:
        share, prior = sharp, None
        for _ in range(EM_ROUNDS + 1):
            means = unit(pull + UNLABELLED_WEIGHT * (share.mT @ free))
            mass = member.sum(0) + UNLABELLED_WEIGHT * share.sum(0)
            prior = (mass / mass.sum()).clamp(min=1e-6).log()
            share = torch.softmax(temperature * (free @ means.mT) + prior, 1)
        tried.append((temperature * means, prior))
    weight = torch.stack([w for w, _ in tried])[None]
    bias = torch.stack([b for _, b in tried if b is not None])[None]
    return chosen(v, weight, bias, "temperature", temperatures)
