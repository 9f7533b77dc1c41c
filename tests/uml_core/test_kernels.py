import math

import pytest
import torch
import torch.nn.functional as F

from uml_core.kernels import PRODUCTS, attend, drop, relu_


def reference(qkv, heads, mask, causal):
    B, T, _ = qkv.shape
    q, k, v = (p.view(B, T, heads, -1).transpose(1, 2) for p in qkv.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return y.transpose(1, 2).reshape(B, T, -1)


@pytest.mark.parametrize("length", [2, PRODUCTS[0], PRODUCTS[1] - 1, PRODUCTS[1]])
@pytest.mark.parametrize("kind", ["free", "causal", "masked"])
def test_attention_and_its_gradient_are_pytorchs(length, kind):
    torch.manual_seed(0)
    lengths = torch.tensor([length, 1, 2])
    mask = (torch.arange(length) < lengths[:, None])[:, None, None] if kind == "masked" else None
    ours = torch.randn(3, length, 3 * 8, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(3, length, 8)
    y = attend(ours, 2, mask, kind == "causal", 0.0)
    expected = reference(theirs, 2, mask, kind == "causal")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [5, 20, 40])
def test_attention_with_dropout_is_right_on_average(length):
    torch.manual_seed(0)
    qkv = torch.randn(1, length, 3 * 4)
    many = torch.stack([attend(qkv, 2, None, True, 0.3) for _ in range(3000)])
    expected = reference(qkv, 2, None, True)
    error = (many.mean(0) - expected).abs() / (many.std(0) / math.sqrt(3000))
    assert error.max() < 5
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, requires_grad=True)
    y = drop(x, p)
    zero = y == 0
    spread = math.sqrt(p * (1 - p) / x.numel())
    assert float(zero.float().mean()) == pytest.approx(p, abs=5 * spread + 1 / 65536)
    assert torch.unique(y[~zero]).tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropped_entries_are_independent_within_a_word_of_random_bits():
    """Four neighbours share one draw of 64 bits."""
    torch.manual_seed(0)
    zero = (drop(torch.ones(100_000, 4), 0.3) == 0).double()
    correlation = torch.corrcoef(zero.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(100_000)


def test_dropout_is_a_function_of_the_seed_and_none_of_zero():
    x = torch.randn(7, 5)
    assert drop(x, 0.0) is x
    torch.manual_seed(1)
    first = drop(x, 0.5)
    assert not torch.equal(drop(x, 0.5), first)
    torch.manual_seed(1)
    assert torch.equal(drop(x, 0.5), first)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_extreme_probabilities_stay_finite(p):
    assert drop(torch.ones(1000), p).isfinite().all()


def test_relu_in_place_and_its_gradient_are_pytorchs():
    x = torch.randn(7, 5, requires_grad=True)
    weight, onward = torch.randn(5, 4), torch.randn(7, 4)

    def gradient(relu):
        return torch.autograd.grad(((relu(2 * x) @ weight) * onward).sum(), x)[0]

    assert torch.equal(gradient(relu_), gradient(F.relu))
    before = 2 * x
    assert relu_(before).data_ptr() == before.data_ptr()
    assert bool((before >= 0).all())
