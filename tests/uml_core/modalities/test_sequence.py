from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from uml_core.errors import UserError
from uml_core.modalities import BadSample
from uml_core.modalities.sequence import Options, Sequence


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def decode(array: np.ndarray, **options: object) -> torch.Tensor:
    return Sequence(Options(**options)).decode(npy(array), "npy")


def test_floats_stay_as_they_are():
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    assert np.array_equal(decode(values).numpy(), values)
    assert decode(values.astype(np.float64)).dtype == torch.float32
    assert decode(values.astype(">f8")).dtype == torch.float32
    assert np.array_equal(decode(np.asfortranarray(values)).numpy(), values)


def test_one_number_per_step_is_a_column():
    assert decode(np.arange(5.0)).tolist() == [[0], [1], [2], [3], [4]]


def test_integers_are_raw_measurements_and_scaled():
    pen = np.array([[0, 500, 0], [100, 300, 0], [200, 400, 1]], np.int16)
    expected = [[-1, 1, -1], [0, -1, -1], [1, 0, 1]]
    assert decode(pen).tolist() == decode(pen, scale="minmax").tolist() == expected
    assert decode(pen, scale="none").tolist() == pen.tolist()


def test_zscore_and_features_that_never_change():
    values = np.array([[1.0, 7.0], [3.0, 7.0]])
    assert decode(values, scale="zscore").tolist() == [[-1, 0], [1, 0]]
    assert decode(values, scale="minmax").tolist() == [[-1, 0], [1, 0]]


def test_an_npz_holds_one_array_or_one_called_x():
    values = np.ones((2, 3), np.float32)
    sequence = Sequence(Options())
    assert sequence.decode(npz(anything=values), "npz").shape == (2, 3)
    assert sequence.decode(npz(x=values, y=np.zeros(9)), "npz").shape == (2, 3)
    with pytest.raises(BadSample, match=r"none is called x \(.*call the one"):
        sequence.decode(npz(a=values, b=values), "npz")


def test_long_series_are_refused_or_cut():
    values = np.zeros((9, 2))
    with pytest.raises(BadSample, match="truncate: true"):
        decode(values, max_length=8)
    assert decode(values, max_length=8, truncate=True).shape == (8, 2)
    assert decode(values, max_length=9).shape == (9, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.zeros((2, 2, 2)),
        np.float32(1),
        np.array([[np.nan]]),
        np.array([[1e300]]),
        np.array([["a"]]),
        np.array([[1j]]),
        np.zeros(3, dtype=[("a", "f4")]),
    ],
)
def test_arrays_that_are_no_series_are_bad_samples(array):
    with pytest.raises(BadSample):
        decode(array)


def test_pickles_are_never_loaded(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="object"):
        Sequence(Options()).decode(stream.getvalue(), "npy")
    assert not (tmp_path / "ran").exists()


def test_headers_cannot_ask_for_more_than_there_is():
    data = bytearray(npy(np.zeros((10, 3))))
    start = data.index(b"(10, 3)")
    data[start : start + 7] = b"(9**9,)"
    with pytest.raises(BadSample):
        Sequence(Options()).decode(bytes(data), "npy")
    with pytest.raises(BadSample, match="cut off"):
        Sequence(Options()).decode(npy(np.zeros((10, 3)))[:-1], "npy")


def test_zip_bombs_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uml_core.modalities.common.MAX_ARRAY_BYTES", 1000)
    for data, suffix in (
        (npz(x=np.zeros((500, 2))), "npz"),
        (npy(np.zeros((251, 1), np.uint8)), "npy"),  # 1004 bytes as float32
    ):
        with pytest.raises(BadSample, match="the array takes more than"):
            Sequence(Options()).decode(data, suffix)


def test_dim_is_read_off_a_sample_and_contradictions_are_named():
    item = torch.zeros(4, 3)
    assert Sequence(Options()).with_input(item).options.dim == 3
    with pytest.raises(UserError, match="3 numbers per step"):
        Sequence(Options(dim=2)).with_input(item)
    with pytest.raises(BadSample, match="3 numbers, not 2"):
        decode(np.zeros((4, 3)), dim=2)
    with pytest.raises(UserError, match="dim is unknown"):
        Sequence(Options()).stem(16, supervised=True)


def test_the_mask_shrinks_with_the_series():
    sequence = Sequence(Options(dim=3, stem="conv1d", pool=False))
    x, mask = sequence.collate([torch.randn(n, 3) for n in (1, 8, 9, 30)])
    tokens, token_mask = sequence.stem(16, supervised=True)(x, mask)
    assert tokens.shape == (4, 4, 16)
    assert token_mask is not None and token_mask.sum(1).tolist() == [1, 1, 2, 4]


def test_padding_of_any_content_is_invisible():
    sequence = Sequence(Options(dim=3, stem="conv1d"))
    stem = sequence.stem(16, supervised=True)
    x, mask = sequence.collate([torch.randn(30, 3), torch.randn(7, 3)])
    assert mask is not None
    noisy = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 100.0))
    torch.testing.assert_close(stem(noisy, mask)[0], stem(x, mask)[0])


def test_problems_are_sentences_that_say_what_to_do():
    def check(setting: str, **options: object) -> list[str]:
        return Sequence.check(Options(**options), setting=setting, width=64, heads=4)

    assert "stem: frames" in check("self_supervised", stem="conv1d")[0]
    assert check("self_supervised") == check("supervised", stem="conv1d") == []
    assert len(check("supervised", dim=0, max_length=0)) == 2


def test_real_pen_traces(real_data: Path):
    sequence = Sequence(Options())
    items = []
    with tarfile.open(real_data / "digits" / "pen-test-000000.tar") as archive:
        for member in archive:
            if member.name.endswith(".npy"):
                items.append(sequence.decode(archive.extractfile(member).read(), "npy"))
    assert len(items) == 600
    assert all(item.shape[1] == 3 and float(item.abs().max()) <= 1 for item in items)


def test_groups_of_steps_are_tokens():
    pen = Sequence(Options(dim=2, patch=3))
    series = [torch.arange(2.0 * n).reshape(n, 2) for n in (7, 3, 2)]
    x, mask = pen.collate(series)
    # 7 steps are two groups and one left over, 2 steps are one group with a step of padding.
    assert mask.tolist() == [[True, True], [True, False], [True, False]]
    assert x[0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert x[2].tolist() == [[0, 1, 2, 3, 0, 0], [0] * 6]
    assert pen.stem(8, supervised=False).linear.weight.shape == (8, 6)
    assert pen.decoder(8).weight.shape == (6, 8)
    assert Sequence(Options(dim=2, patch=3, stem="conv1d")).collate(series)[0].shape == (3, 7, 2)
