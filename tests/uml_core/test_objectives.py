import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from uml_core.objectives import (
    next_embedding_sum,
    next_embedding_terms,
    supervised_sum,
    supervised_terms,
)


def mean(prediction, target, mask, kind="mse"):
    total = next_embedding_sum(prediction, target, mask, kind)
    return float(total / next_embedding_terms(target, mask))


def slow_next_embedding(prediction, target, lengths, kind):
    """The definition, sample by sample: (sum, number of terms)."""
    total, terms = 0.0, 0
    for p, x, length in zip(prediction, target, lengths, strict=True):
        pairs = [(t, t + 1) for t in range(length - 1)] or [(0, 0)]
        for t, goal in pairs:
            if kind == "mse":
                total += float(((p[t] - x[goal]) ** 2).mean())
            else:
                total += float(-p[t].log_softmax(0)[x[goal]])
            terms += 1
    return total, terms


def test_supervised_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    y = torch.tensor([0, 0, -1])
    expected = torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(
        torch.exp(torch.tensor(1.0))
    )
    assert float(supervised_sum(logits, y)) == pytest.approx(float(expected))
    assert int(supervised_terms(y)) == 2


def test_supervised_without_labels_is_zero_with_zero_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    y = torch.full((3,), -1)
    loss = supervised_sum(logits, y)
    loss.backward()
    assert float(loss.detach()) == 0 and int(supervised_terms(y)) == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_label_smoothing_mixes_in_the_uniform_distribution():
    logits, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    uniform = -logits.log_softmax(1).mean(1).sum()
    expected = 0.9 * supervised_sum(logits, y) + 0.1 * uniform
    torch.testing.assert_close(supervised_sum(logits, y, 0.1), expected)


def test_next_embedding_by_hand():
    # Two features; position 0 predicts x1, position 1 predicts x2; the last prediction is free.
    prediction = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [99.0, 99.0]]])
    target = torch.tensor([[[7.0, 7.0], [1.0, 3.0], [0.0, 2.0]]])
    assert float(next_embedding_sum(prediction, target, None, "mse")) == pytest.approx(2.0 + 2.0)
    assert mean(prediction, target, None) == pytest.approx(2.0)
    mask = torch.tensor([[True, True, False]])
    assert mean(prediction, target, mask) == pytest.approx(2.0)
    assert int(next_embedding_terms(target, mask)) == 1


def test_a_sequence_of_length_one_predicts_itself():
    prediction, target = torch.tensor([[[1.0]], [[4.0]]]), torch.tensor([[[3.0]], [[4.0]]])
    assert mean(prediction, target, None) == pytest.approx(2.0)
    padded = F.pad(prediction, (0, 0, 0, 2), value=9.0), F.pad(target, (0, 0, 0, 2), value=-9.0)
    mask = torch.tensor([[True, False, False]] * 2)
    assert mean(*padded, mask) == pytest.approx(2.0)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from(["mse", "cross_entropy"]),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_next_embedding_equals_its_definition_whatever_the_padding(lengths, extra, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, longest, width = len(lengths), max(lengths) + extra, 3
    prediction = torch.randn(batch, longest, width, generator=generator)
    if kind == "mse":
        target = torch.randn(batch, longest, width, generator=generator)
    else:
        target = torch.randint(0, width, (batch, longest), generator=generator)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    if mask.all() and extra == 0:
        mask = None
    total, terms = slow_next_embedding(prediction, target, lengths, kind)
    assert float(next_embedding_sum(prediction, target, mask, kind)) == pytest.approx(
        total, rel=1e-4
    )
    assert int(next_embedding_terms(target, mask)) == terms


def test_padded_positions_get_no_gradient():
    prediction = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    next_embedding_sum(prediction, torch.randn(2, 4, 3), mask, "mse").backward()
    got = prediction.grad.abs().sum(-1) > 0
    assert got.tolist() == [[True, False, False, False], [True, True, True, False]]
