"""The worked example behind the figure, and that the figure gets drawn in every case."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from uml_core.theory.example import NOISY, SAMPLES, worked_example
from uml_core.theory.figure import draw
from uml_core.theory.gaussian import GaussianCurves, GaussianSetup


def test_example_tells_the_story_of_the_figure():
    example = worked_example()
    assert np.isinf(example.x_only[-1])
    assert np.isfinite(example.joint).all()
    assert (example.joint < example.x_only).all()
    # strengths 1 and 0.5, equal noise, designs nearly orthogonal: about 4 Y per X
    assert example.rates[0] == pytest.approx(4, rel=0.15)
    assert example.rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(example.rates) < 0).all()
    clean, noisy = example.budgets["like_training"], example.budgets["noisy_y"]
    assert 0 < clean.n_y < SAMPLES / 2 < example.budgets["full_strength"].n_y
    assert noisy.n_y == 0 and NOISY > 1
    assert np.isinf(example.budgets["full_strength"].x_only_error)


def curves(caught_up):
    setup = GaussianSetup(steps=200, evaluate_every=100, seeds=(0, 1))
    x_only = np.array([[5.0, 4.0, 3.0], [5.1, 4.1, 3.1]])
    uml = np.array([[5.0, 3.0, 3.5], [5.1, 3.1, 3.4]]) if caught_up else x_only * 0.9
    steps = np.array([0, 100, 200])
    return GaussianCurves(setup, steps, x_only, uml, np.ones(2), np.zeros(2))


@pytest.mark.parametrize("cases", [(True, False), (False,)])
def test_figure_is_drawn_whichever_settings_occur(tmp_path, cases):
    path = tmp_path / "theory.png"
    draw(worked_example(), [curves(case) for case in cases], path)
    with Image.open(path) as image:
        assert min(image.size) > 1000
        assert len(set(image.convert("L").resize((200, 200)).get_flattened_data())) > 20


def test_figure_without_any_lead(tmp_path):
    level = curves(False)
    draw(worked_example(), [replace(level, uml=level.x_only)], tmp_path / "theory.png")
    assert (tmp_path / "theory.png").exists()
