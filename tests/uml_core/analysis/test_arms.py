import numpy as np
import pytest

from uml_core.analysis.arms import MEASURES, compare_geometry, geometry
from uml_core.analysis.bootstrap import mean_difference
from uml_core.analysis.margins import functional_margins
from uml_core.analysis.rank import effective_rank
from uml_core.analysis.separability import separability
from uml_core.errors import UserError
from uml_core.readout import Readout
from uml_core.statistics import paired_gain

RNG = np.random.default_rng(2)
LABELS = np.arange(120) % 3
HEAD = np.eye(3, 5)
READOUT = Readout(HEAD, np.arange(3))


def features(spread: float) -> np.ndarray:
    return HEAD[LABELS] + spread * RNG.normal(size=(120, 5))


def test_a_model_is_measured_as_the_analyses_do():
    x = features(0.5)
    found = geometry(READOUT, x, LABELS)
    assert found.margin == functional_margins(READOUT.lift(x), LABELS, HEAD).mean.value
    apart = separability(x, LABELS)
    assert (found.silhouette, found.davies_bouldin) == pytest.approx(
        (apart.silhouette.value, apart.davies_bouldin.value)
    )
    assert found.rank == effective_rank(x).rank.value
    assert found.margins.shape == (120,)


def test_differences_are_paired_over_seeds():
    arms = {
        arm: {seed: geometry(READOUT, features(s), LABELS) for seed in (3, 4, 5)}
        for arm, s in (("unimodal", 1.0), ("uml", 0.4))
    }
    found = compare_geometry(arms)
    assert found.seeds == [3, 4, 5] and found.samples == 120 and set(found.values) == set(MEASURES)
    for measure in MEASURES:
        values = {arm: [getattr(by[s], measure) for s in by] for arm, by in arms.items()}
        expected = paired_gain(values["uml"], values["unimodal"])
        assert found.differences[measure] == {"unimodal": expected}
    assert found.differences["margin"]["unimodal"].above_zero
    assert found.differences["davies_bouldin"]["unimodal"].ci95[1] < 0


def test_one_seed_is_paired_over_samples_where_that_is_possible():
    arms = {
        arm: {7: geometry(READOUT, features(s), LABELS)} for arm, s in (("a", 0.8), ("uml", 0.4))
    }
    found = compare_geometry(arms)
    expected = mean_difference(arms["uml"][7].margins, arms["a"][7].margins)
    assert found.differences["margin"]["a"].ci95 == (expected.low, expected.high)
    assert found.differences["silhouette"]["a"].ci95 is not None
    assert found.differences["rank"]["a"].ci95 is None
    arms["a"] = {8: arms["a"][7]}
    with pytest.raises(UserError, match="same seeds"):
        compare_geometry(arms)
