"""The batched logistic regression ends at the optimum, seed by seed and penalty by penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from uml_core.heads.logistic import logistic_regression

PENALTIES = torch.tensor([1e-1, 1e-3])


def drawn(samples, dims, classes=4, seeds=3):
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(seeds, samples, dims, generator=generator, dtype=torch.float64)
    y = torch.arange(samples).expand(seeds, -1) % classes
    return torch.nn.functional.normalize(x + y[..., None] * 0.2, dim=-1), y


@pytest.mark.parametrize(("samples", "dims"), [(12, 40), (60, 6)])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-5), (torch.float32, 2e-2)])
def test_as_sklearn_finds_it(samples, dims, dtype, within):
    x, y = drawn(samples, dims)
    weight, bias = logistic_regression(x.to(dtype), y, PENALTIES, 4)
    for s in range(len(x)):
        for i, penalty in enumerate(PENALTIES.tolist()):
            model = LogisticRegression(
                C=1 / (penalty * samples), solver="newton-cholesky", tol=1e-9
            )
            model.fit(x[s].numpy(), y[s].numpy())
            expected = x[s].numpy() @ model.coef_.T + model.intercept_
            found = (x[s].to(dtype) @ weight[s, i].mT + bias[s, i]).double().numpy()
            # Logits are defined up to a constant per sample.
            expected -= expected.mean(1, keepdims=True)
            found -= found.mean(1, keepdims=True)
            np.testing.assert_allclose(found, expected, atol=within * np.abs(expected).max())


def test_a_seed_alone_ends_where_it_ends_among_others():
    x, y = drawn(20, 8)
    together, _ = logistic_regression(x, y, PENALTIES, 4)
    alone, _ = logistic_regression(x[1:2], y[1:2], PENALTIES, 4)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_unlabelled_rows_count_nowhere():
    x, y = drawn(20, 8)
    more = torch.cat([x, x.flip(0) * 3], 1)
    labels = torch.cat([y, torch.full_like(y, -1)], 1)
    expected, _ = logistic_regression(x, y, PENALTIES, 4)
    found, _ = logistic_regression(more, labels, PENALTIES, 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_firm_prior_is_kept_and_a_loose_one_forgotten():
    x, y = drawn(20, 8)
    prior = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    firm, _ = logistic_regression(x, y, torch.full((1, 4), 1e6), 4, prior)
    torch.testing.assert_close(firm[:, 0], prior, atol=1e-5, rtol=0)
    per_class = torch.tensor([[1e6, 1e-2, 1e-2, 1e-2]])
    mixed, _ = logistic_regression(x, y, per_class, 4, prior)
    torch.testing.assert_close(mixed[:, 0, 0], prior[:, 0], atol=1e-5, rtol=0)
    assert (mixed[:, 0, 1:] - prior[:, 1:]).abs().max() > 0.5
