"""Every figure draws from its dataclass and shows the numbers it claims to show."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from uml_core.analysis import plots
from uml_core.analysis.alignment import linear_cka, mutual_knn
from uml_core.analysis.decision_plane import decision_plane
from uml_core.analysis.exchange_rate import exchange_rate
from uml_core.analysis.forecast import forecast
from uml_core.analysis.gradients import GradientReport
from uml_core.analysis.margins import functional_margins
from uml_core.analysis.neurons import multimodal_neurons
from uml_core.analysis.prototypes import prototype_map
from uml_core.analysis.rank import effective_rank
from uml_core.analysis.separability import separability

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((60, 6)), np.arange(60) % 4
HEAD = RNG.standard_normal((4, 6))


def saved(figure, tmp_path):
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 5000
    return figure.axes


def test_alignment_dots_bars_and_p_values(tmp_path):
    found = [linear_cka(X, X, permutations=9), mutual_knn(X, X, k=3, permutations=9)]
    other = [linear_cka(X, X[::-1], permutations=9), mutual_knn(X, X[::-1], k=3, permutations=9)]
    panels = saved(plots.plot_alignment({"epoch 1": found, "reversed": other}), tmp_path)
    assert [axes.get_xlabel().split(" (")[0] for axes in panels] == ["linear CKA", "mutual kNN"]
    for axes, first, second in zip(panels, found, other, strict=True):
        assert list(axes.lines[0].get_xdata()) == [first.value, second.value]
        assert [bar.get_width() for bar in axes.patches] == [first.null_high, second.null_high]
        assert [t.get_text() for t in axes.texts] == [
            f"p = {a.p_value:.2g}" for a in (first, second)
        ]
        assert list(axes.lines[0].get_ydata()) == list(axes.get_yticks())
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["epoch 1", "reversed"]


def test_margins_separability_and_ranks_name_their_arms(tmp_path):
    margins = {"uml": functional_margins(X, Y, HEAD), "alone": functional_margins(X, Y, -HEAD)}
    figure = plots.plot_margins(margins)
    saved(figure, tmp_path)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[0].startswith(f"uml: mean {margins['uml'].mean.value:.3g}")
    found = separability(X, Y, repeats=5)
    axes = saved(plots.plot_separability({"uml": found}), tmp_path)
    assert len(axes) == 2 and [t.get_text() for t in axes[0].get_yticklabels()] == ["uml"]
    assert list(axes[0].lines[0].get_xdata()) == [found.silhouette.low, found.silhouette.high]
    axes = saved(plots.plot_ranks({"uml": effective_rank(X, repeats=5)}), tmp_path)[0]
    assert axes.get_yticklabels()[0].get_text() == "uml\n60 samples, 6 wide"


def test_prototypes_are_centred_per_row(tmp_path):
    found = prototype_map(HEAD, X, Y, repeats=50)
    axes = saved(plots.plot_prototypes(found, list("abcd")), tmp_path)[0]
    np.testing.assert_allclose(axes.images[0].get_array().mean(1), 0, atol=1e-12)
    assert [t.get_text() for t in axes.get_yticklabels()] == list("abcd")


def test_decision_plane_shows_each_class(tmp_path):
    found = decision_plane(X + HEAD[Y], Y, HEAD, 1, 3, repeats=50)
    axes = saved(plots.plot_decision_plane(found, list("abcd")), tmp_path)[0]
    shown = {c.get_label(): c.get_offsets() for c in axes.collections}
    np.testing.assert_allclose(shown["b"], found.points[found.labels == 1])
    np.testing.assert_allclose(shown["d"], found.points[found.labels == 3])


def test_neurons_fall_and_show_the_baseline(tmp_path):
    found = multimodal_neurons(X, X + RNG.standard_normal(X.shape), X, X[::-1], Y % 2, repeats=20)
    axes = saved(plots.plot_neurons(found), tmp_path)[0]
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    labels = [line.get_label().split(" (")[0] for line in lines]
    assert labels == ["all", "class 0", "class 1", "largest |r| before training"]
    assert (np.diff(lines[0].get_ydata()) <= 0).all()
    dashed = [float(y) for x in axes.lines if x.get_linestyle() == "--" for y in x.get_ydata()]
    assert found.overall.baseline in dashed


def gradient_reports(shift: float) -> list[GradientReport]:
    return [
        GradientReport({"a": 1.0 + s + shift, "b": 2.0}, {("a", "b"): 0.1 * s + shift}, {}, 10 * s)
        for s in range(4)
    ]


def test_gradients_over_steps(tmp_path):
    runs = [gradient_reports(0.0), gradient_reports(0.2)[:3]]  # the second stopped early
    [axes] = saved(plots.plot_gradient_norms(runs), tmp_path)
    assert axes.get_yscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [0, 10, 20]
    assert axes.lines[0].get_ydata() == pytest.approx([1.1, 2.1, 3.1])
    [axes] = saved(plots.plot_gradient_cosines({"UML": runs, "control": runs[:1]}), tmp_path)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["UML: a / b", "control: a / b"]
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    assert len(axes.collections) == 1  # one seed has no interval


@pytest.mark.parametrize("slope, start", [(0.5, "One image sample"), (0.0, "Not identifiable")])
def test_exchange_rate_draws_measured_and_plane_lines(tmp_path, slope, start):
    rows = [(i, j, s, 3 * i + slope * j) for s in (0, 1) for i in (1, 2, 4) for j in (0, 2)]
    found = exchange_rate(*zip(*rows, strict=True))
    axes = saved(plots.plot_exchange_rate(found), tmp_path)[0]
    assert axes.get_title().startswith(start)
    assert len(axes.collections) == 2


def test_local_rates_name_every_cell(tmp_path):
    values = {0: 1.0, 2: 2.0, 6: 2.0, 8: 1.0}  # the second step brings nothing, the third harm
    rows = [
        (i, j, s, 3 * i + v + 0.01 * s * j * i)
        for s in (0, 1, 2)
        for i in (1, 2, 4)
        for j, v in values.items()
    ]
    found = exchange_rate(*zip(*rows, strict=True))
    [axes] = saved(plots.plot_local_rates(found, "image", "sound"), tmp_path)
    texts = [text.get_text() for text in axes.texts]
    assert ["harm" in text for text in texts] == [False, False, True] * 2
    for text, cell in zip(texts, found.local, strict=True):
        assert (text == "not identifiable") == (not cell.rate.identifiable)
    assert 0 < texts.count("not identifiable") < 4
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "4"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "2", "6", "8"]


def test_flat_accuracies_and_forecasts_draw(tmp_path):
    rows = [(i, j, s, 10.0) for s in (0, 1) for i in (1, 2) for j in (0, 2)]
    saved(plots.plot_exchange_rate(exchange_rate(*zip(*rows, strict=True))), tmp_path)
    found = {"text": forecast(X, Y, X, Y), "pair": forecast(X, Y % 2, X, Y % 2)}
    axes = saved(plots.plot_forecast(found), tmp_path)[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"text\n{found['text'].verdict}"]


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, uml_core.analysis.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
