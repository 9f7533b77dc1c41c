from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from uml_core.errors import UserError
from uml_core.modalities import BadSample
from uml_core.modalities.vector import Options, Vector


def decode(array: np.ndarray, **options: object) -> torch.Tensor:
    stream = io.BytesIO()
    np.save(stream, array)
    return Vector(Options(**options)).decode(stream.getvalue(), "npy")


def test_a_vector_or_a_row_is_one_vector():
    assert decode(np.arange(4)).tolist() == decode(np.arange(4.0)[None]).tolist() == [0, 1, 2, 3]
    assert decode(np.ones(3, np.float16)).dtype == torch.float32


def test_normalised_vectors_have_length_one():
    assert float(decode(np.array([3.0, 4.0]), normalise=True).norm()) == pytest.approx(1)
    assert decode(np.zeros(3), normalise=True).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3)), np.zeros(0), np.float32(1), np.array([np.inf])]
)
def test_other_arrays_are_bad_samples(array):
    with pytest.raises(BadSample):
        decode(array)


def test_raw_two_byte_values_are_said_to_be_bfloat16():
    with pytest.raises(BadSample, match="bfloat16"):
        decode(np.zeros(4, "V2"))


def test_dim_is_read_off_a_sample_and_contradictions_are_named():
    assert Vector(Options()).with_input(torch.zeros(5)).options.dim == 5
    with pytest.raises(UserError, match="5 numbers"):
        Vector(Options(dim=4)).with_input(torch.zeros(5))
    with pytest.raises(BadSample, match="5 numbers, not 4"):
        decode(np.zeros(5), dim=4)
    with pytest.raises(UserError, match="dim is unknown"):
        Vector(Options()).stem(16, supervised=True)


def test_the_projection_is_linear_without_bias():
    stem = Vector(Options(dim=5)).stem(16, supervised=True)
    assert [tuple(p.shape) for p in stem.parameters()] == [(16, 5)]
    x = torch.randn(2, 5)
    torch.testing.assert_close(stem(2 * x)[0], 2 * stem(x)[0])


def test_identity_passes_features_through_and_needs_the_models_width():
    stem = Vector(Options(dim=5, stem="identity")).stem(5, supervised=True)
    x = torch.randn(2, 5)
    assert torch.equal(stem(x)[0], x[:, None]) and not list(stem.parameters())
    with pytest.raises(UserError, match=r"set model\.width to 5"):
        Vector(Options(dim=5, stem="identity")).stem(6, supervised=True)
    problems = Vector.check(Options(dim=5, stem="identity"), setting="supervised", width=6, heads=2)
    assert len(problems) == 1 and "model.width" in problems[0]


def test_a_series_of_length_one_predicts_itself():
    vector = Vector(Options(dim=5))
    x, mask = vector.collate([torch.randn(5), torch.randn(5)])
    assert mask is None and torch.equal(vector.targets(x), x[:, None])
