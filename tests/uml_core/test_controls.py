import itertools
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from uml_core.controls import PermutedLabels, PermutedValues, derangement
from uml_core.errors import UserError
from uml_core.modalities.base import Batch
from uml_core.modalities.common import pad_stack, unpad
from uml_core.parallel import OneProcess


@given(st.integers(2, 60), st.integers(0, 2**31))
def test_derangement_permutes_without_a_fixed_point_and_by_seed(classes, seed):
    order = derangement(classes, seed)
    assert sorted(order) == list(range(classes))
    assert not (order == np.arange(classes)).any()
    assert (order == derangement(classes, seed)).all()


def test_derangements_are_uniform():
    """Four classes have nine derangements; 1800 seeds give each about 200 (chi-square, 8 df)."""
    counts = Counter(tuple(derangement(4, seed)) for seed in range(1800))
    assert len(counts) == 9
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 26.1  # p = 0.001


def test_one_class_cannot_be_permuted():
    with pytest.raises(UserError, match="two classes"):
        derangement(1, 0)


def test_permuted_labels_rename_whole_classes():
    control = PermutedLabels(5, seed=3)
    y = torch.tensor([0, 1, 1, 4, -1, 2])
    batch = Batch(torch.randn(6, 2), y, keys=list("abcdef"))
    seen = control(batch, 0)
    table = torch.from_numpy(derangement(5, 3))
    assert torch.equal(seen.y[y >= 0], table[y[y >= 0]]) and seen.y[4] == -1
    assert seen.x is batch.x and torch.equal(batch.y, y)
    assert torch.equal(control(batch, 7).y, seen.y)


def lengths_mask(lengths, longest):
    return torch.arange(longest)[None] < torch.tensor(lengths)[:, None]


def test_permuted_values_keep_marginals_and_destroy_structure():
    rows = 512
    base = torch.randn(rows, 1, 1)
    x = base + 0.1 * torch.randn(rows, 4, 3)  # everything is correlated across time and features
    seen = PermutedValues(0, OneProcess())(Batch(x, torch.zeros(rows)), 0).x
    assert torch.equal(seen.sort(0).values, x.sort(0).values)

    def correlation(values):
        c = np.corrcoef(values.reshape(rows, -1).T.numpy())
        return np.abs(c[~np.eye(len(c), dtype=bool)])

    assert correlation(x).min() > 0.9
    assert correlation(seen).max() < 0.2 and correlation(seen).mean() < 0.06


@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.integers(0, 1000))
def test_valid_values_trade_places_with_valid_values_only(lengths, seed):
    mask = lengths_mask(lengths, 5)
    x = torch.arange(len(lengths) * 10.0).reshape(-1, 5, 2) + 1
    x[~mask] = 0
    seen = PermutedValues(seed, OneProcess())(Batch(x, torch.zeros(len(x)), mask), 0).x
    assert (seen[~mask] == 0).all()
    for t in range(5):
        valid = mask[:, t]
        for d in range(2):
            assert sorted(seen[valid, t, d].tolist()) == sorted(x[valid, t, d].tolist())


def test_tokens_and_images_are_permuted_too():
    tokens = torch.randint(1, 50, (64, 7))
    mask = lengths_mask([7, 4] * 32, 7)
    tokens[~mask] = 0
    seen = PermutedValues(1, OneProcess())(Batch(tokens, torch.zeros(64), mask), 0).x
    assert seen.dtype == tokens.dtype and (seen[~mask] == 0).all()
    assert not torch.equal(seen, tokens)
    image = torch.randint(0, 256, (16, 3, 4, 4), dtype=torch.uint8)
    seen = PermutedValues(1, OneProcess())(Batch(image, torch.zeros(16)), 0).x
    assert seen.dtype == torch.uint8
    assert torch.equal(seen.sort(0).values, image.sort(0).values) and not torch.equal(seen, image)


def test_permutations_depend_on_seed_and_batch_number_alone():
    batch = Batch(torch.randn(32, 3, 2), torch.zeros(32))
    first = PermutedValues(5, OneProcess())(batch, 9).x
    torch.manual_seed(123)
    assert torch.equal(first, PermutedValues(5, OneProcess())(batch, 9).x)
    assert not torch.equal(first, PermutedValues(5, OneProcess())(batch, 10).x)
    assert not torch.equal(first, PermutedValues(6, OneProcess())(batch, 9).x)


class Ranks:
    """The slices of several ranks in one process: what all of them hold, seen from one of them."""

    def __init__(self, slices, rank):
        self.slices, self.rank = slices, rank

    def whole(self, batch):
        parts = [unpad(b.x, b.mask) for b in self.slices]
        x, mask = pad_stack(list(itertools.chain(*parts)))
        return x, mask, sum(map(len, parts[: self.rank]))


@given(st.lists(st.integers(1, 6), min_size=3, max_size=9), st.data())
@settings(max_examples=40)
def test_any_number_of_ranks_sees_the_permutation_of_one_process(lengths, data):
    ranks = data.draw(st.integers(1, len(lengths)))
    rows = [torch.randn(n, 2) for n in lengths]
    whole = PermutedValues(3, OneProcess())(Batch(*swapped(rows)), 4)
    expected = unpad(whole.x, whole.mask)
    cuts = [r * len(rows) // ranks for r in range(ranks + 1)]
    slices = [Batch(*swapped(rows[a:b])) for a, b in itertools.pairwise(cuts)]
    for rank, mine in enumerate(slices):
        seen = PermutedValues(3, Ranks(slices, rank))(mine, 4)
        assert seen.x.shape == mine.x.shape
        for got, wanted in zip(
            unpad(seen.x, seen.mask), expected[cuts[rank] : cuts[rank + 1]], strict=True
        ):
            assert torch.equal(got, wanted)


def swapped(rows):
    x, mask = pad_stack(rows)
    return x, torch.zeros(len(rows)), mask
