"""Figures: what they are drawn from, and how they become part of a page."""

import re

import numpy as np

from pipelines.reporting import plots

ARMS = {
    "uml": {"steps": [0, 25, 50], "val_accuracy": [[2.0, 9.0, 20.0], [2.0, 8.0]], "loss": {}},
    "homemade": {"steps": [0], "val_accuracy": [[3.0]], "loss": {"text": [[1.0]]}},
}


def test_every_colour_can_be_told_from_the_others():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)


def test_a_chart_for_a_page_has_css_colours_and_no_fixed_size():
    chart = plots.accuracy_chart(ARMS)
    assert chart.startswith("<svg")
    assert "var(--arm-uml)" in chart
    assert "var(--arm-other)" in chart  # an arm nobody foresaw has a colour too
    assert not re.search(r"<svg[^>]* (width|height)=", chart)
    assert "viewBox" in chart
    assert chart == plots.accuracy_chart(ARMS)  # the same numbers give the same bytes


def test_a_chart_per_modality_with_a_loss():
    (chart,) = plots.loss_charts(ARMS)
    assert "Training loss, text" in chart


def test_seed_matrix_holds_the_last_value_of_a_stopped_seed():
    matrix = plots.seed_matrix([[1.0, 2.0], [1.0, None, 3.0]])
    assert matrix[0].tolist() == [1.0, 2.0, 2.0]
    assert np.isnan(matrix[1, 1])
