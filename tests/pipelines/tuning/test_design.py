"""The design of a sweep: points, baselines, equal cost, the confirmation's arms."""

from __future__ import annotations

import pytest

from pipelines.tuning.design import confirmation, design, fresh_seeds
from tune_spaces.base import find
from uml_core import recipe
from uml_core.errors import UserError


@pytest.fixture
def make(tiny_recipe):
    def build(space, **changes):
        made = recipe.from_dict(tiny_recipe)
        return design(recipe.override(made, changes), find(space))

    return build


def test_modalities_out_of_use_are_opened_where_a_point_takes_them(make):
    made = make("modality_ratio", **{"modalities.wave.ratio": 0.0})
    assert set(made.data.modalities) == {"image", "text", "wave"}
    assert made.recipe.active == ["image", "text"]
    assert "wave" not in make("optimiser", **{"modalities.wave.ratio": 0.0}).data.modalities


def test_there_is_one_baseline_per_setting_of_the_target(make):
    assert len(make("modality_ratio").baselines) == 1
    made = make("optimiser+loss_weight", **{"sweep.search": "grid"})
    assert len(made.baselines) == 9 and len(made.points) == 9 * 7**2
    rates = {t.settings["train.lr"] for t in made.baselines}
    assert rates == {1e-3, 3e-3, 1e-2}


@pytest.mark.parametrize("budget", ["target_samples", "flops"])
def test_every_trial_gets_the_same_of_what_the_budget_names(make, budget):
    made = make("modality_ratio", **{"sweep.budget": budget, "train.steps": 200})
    spent = [getattr(trial, budget) for trial in made.trials]
    assert max(spent) <= 1.05 * min(spent)
    other = "flops" if budget == "target_samples" else "target_samples"
    assert max(getattr(t, other) for t in made.trials) > 1.3 * min(
        getattr(t, other) for t in made.trials
    )


def test_a_batch_size_changes_the_steps_and_not_the_samples(make):
    made = make("paper_grid", **{"sweep.search": "random", "sweep.trials": 20})
    assert {t.target_samples for t in made.trials} == {96}
    assert {t.steps for t in made.trials} == {12, 3}  # batches of 8 and 32


def test_trials_of_other_lengths_are_the_same_method(make):
    """What counts steps keeps its share of the run in the trial that is trained, too."""
    changes = {
        "modalities.wave.ratio": [[0, 1.0], [6, 0.0]],
        "model.trunk_frozen": 6,
        "train.lr_warmup": 4,
        "train.steps": 12,
    }
    made = make("paper_grid", **{**changes, "sweep.search": "random", "sweep.trials": 20})
    lengths = set()
    for trial in made.points:
        trained = trial.recipe(made.recipe)
        lengths.add(trial.steps)
        assert trained.train.steps == trial.steps
        assert trained.model.trunk_frozen == round(trial.steps / 2)
        assert trained.train.lr_warmup == trial.steps // 3
        if isinstance(trained.modalities["wave"].ratio, list):
            assert trained.modalities["wave"].ratio[1][0] == round(trial.steps / 2)
    assert lengths == {12, 3}


def test_the_confirmation_holds_best_control_baseline_and_a_learned_mix_of_equal_cost(make):
    made = make("modality_ratio", **{"train.steps": 100})
    best = max(made.points, key=lambda t: t.flops)
    trials = {t.key: t for t in confirmation(made, best, made.baselines[0])}
    assert {t.arm for t in trials.values()} == {"uml", "uml_permuted", "unimodal"}
    assert all(t.test and t.seeds == [2, 3, 4, 5, 6] for t in trials.values())
    assert not set(fresh_seeds(made.recipe)) & set(made.recipe.seeds)
    learned = trials["confirm-adaptive"].recipe(made.recipe)
    assert learned.adaptive == ["text", "wave"]
    assert trials["confirm-adaptive"].flops <= 1.02 * trials["confirm-best"].flops


def test_a_mix_that_changes_with_the_step_has_no_learned_counterpart(make):
    ratio = [[0, 1.0], [6, 2.0]]
    made = make("optimiser", **{"modalities.text.ratio": ratio})
    assert len(confirmation(made, made.points[0], made.baselines[0])) == 3


def test_every_point_that_does_not_fit_is_told(make):
    with pytest.raises(UserError) as caught:
        make("exchange_rate", shots=16)
    assert len(caught.value.problems) >= 3
    assert all("image samples per class 16" in p for p in caught.value.problems[:3])
