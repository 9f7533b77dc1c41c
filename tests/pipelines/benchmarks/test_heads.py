"""The suite `heads`: both contenders do the same work, and unequal work is no measurement."""

from __future__ import annotations

import pytest

from pipelines.benchmarks import heads
from uml_core.errors import RunError


@pytest.fixture
def short(monkeypatch):
    """Fits of few steps over few features, so that they take no time."""
    monkeypatch.setattr(heads, "STEPS", 200)
    monkeypatch.setattr(heads, "DIMS", {"caltech-aligned": (12, 12), "caltech": (16, 8)})


@pytest.mark.parametrize("name", ["caltech-aligned", "caltech"])
def test_the_plain_loop_takes_the_steps_that_ours_takes(name, short):
    one = heads.work(name, seed=3)
    for unit in [u for u in one.units if u.point in (0, 3)]:
        single = heads.Work(one.recipe, one.rows, one.val, [unit])
        alone = heads.plain(one, [unit])
        assert alone > 0 and alone == heads.ours([single], rank=0, size=1), unit


def test_all_workers_together_do_every_fit(short):
    works = [heads.work("caltech", seed) for seed in (0, 1)]
    whole = heads.ours(works, rank=0, size=1)
    assert whole == sum(heads.ours(works, rank, 3) for rank in range(3))


def found(steps):
    raw = {
        "fit_steps_per_second": {"ours": [3000.0, 4000.0, 5000.0], "plain": [900.0, 1000.0]},
        "fits_of_first_seed": 16,
        "steps_of_first_seed": {"ours": 8000, "plain": steps},
    }
    slow = {"fit_steps_per_second": {"ours": [2000.0], "plain": [1000.0]}}
    return {"caltech": raw, "caltech-aligned": raw | slow}


def test_the_figure_is_a_ratio_of_medians_over_the_whole_grid():
    result = heads.summary(found(8100))
    assert result["by_recipe"]["caltech"]["heads_vs_plain"] == pytest.approx(4000 / 950)
    plain, ours = 8000 / 950 + 8000 / 1000, 8000 / 4000 + 8000 / 2000
    assert result["heads_vs_plain"] == pytest.approx(plain / ours)
    assert result["by_recipe"]["caltech"]["fits_per_minute"]["ours"] == pytest.approx(480)
    shown = heads.rows(result)
    assert shown[0][:2] == ["heads_vs_plain", "2.74"] and len(shown) == 5


def test_unequal_work_is_no_measurement():
    with pytest.raises(RunError, match="no equal work"):
        heads.summary(found(7000))
