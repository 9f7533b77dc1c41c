"""The report: complete, self-contained, honest, safe against what stands in the data."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.report import save_samples, write_report
from pipelines.reporting import plots, terminal
from uml_core.analysis.exchange_rate import exchange_rate
from uml_core.analysis.gradients import GradientReport
from uml_core.errors import UserError
from uml_core.statistics import paired_gain

RECIPE = """name: shapes
target: image
shots: 8
modalities:
  image: {kind: image, train: image-train-*.tar}
  text: {kind: text, train: text-train-*.tar, ratio: 1.0}
  audio: {kind: audio, train: audio-train-*.tar, ratio: 0.0}
"""
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "torch": "2.11.0"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "host": {"cores": 2, "memory_gb": 23.5, "gpus": []},
    "command": "uml compare shapes",
    "placement": {"workers": [{"rank": 0, "device": "CPU"}, {"rank": 1, "device": "CPU"}]},
    "data": {"image": {"samples": 4800, "shards": 2, "sha256": "ab" * 32}},
    "dataset_sha256": "cd" * 32,
    "guards": {
        "overlap": {"image": {"test": 2400, "shared": 3, "share": 0.00125, "examples": []}},
        "shared_sources": [{"modalities": ["image", "text"], "count": 7, "share": 0.5}],
        "warnings": ["image and text share 7 sources"],
    },
    "quarantined": 4,
}


def compare(gain: float, *, shots: int | None = 8, seeds: int = 5) -> dict:
    """A synthetic comparison whose true gain is `gain` points and whose control has none."""
    rng = np.random.default_rng(seeds)
    base = 19 + rng.normal(0, 1.0, seeds)
    accuracy = {
        "unimodal": base,
        "uml": base + gain + rng.normal(0, 0.4, seeds),
        "uml_permuted": base + rng.normal(0, 0.4, seeds),
    }
    by = {arm: values.round(2).tolist() for arm, values in accuracy.items()}
    return {
        "target": "image",
        "shots": shots,
        "seeds": list(range(seeds)),
        "arms": {
            arm: {"test_accuracy": values, "val_accuracy": values, "chosen": {"lr": 0.001}}
            for arm, values in by.items()
        },
        "baseline": "unimodal",
        "control": "class indices of the auxiliary labels deranged, per seed",
        "gain": paired_gain(by["uml"], by["unimodal"]).to_json(),
        "control_gain": paired_gain(by["uml_permuted"], by["unimodal"]).to_json(),
        "gain_over_control": paired_gain(by["uml"], by["uml_permuted"]).to_json(),
        "wall_seconds": 214.0,
    }


def curves(result: dict) -> dict:
    """Curves whose first seed stopped early, and one unknown loss."""
    arms = {}
    for arm, facts in result["arms"].items():
        full = [[2.0, 10.0, value] for value in facts["val_accuracy"]]
        losses = {"image": [[3.9, 2.0, None] for _ in full]}
        arms[arm] = {"steps": [0, 25, 50], "val_accuracy": [full[0][:2], *full[1:]], "loss": losses}
        if arm != "unimodal":
            arms[arm]["gradients"] = [pulls(arm == "uml", seed) for seed in result["seeds"]]
    return {"shots": result["shots"], "arms": arms}


def pulls(together: bool, seed: int) -> list[dict]:
    """Two gradient reports of a fit whose modalities pull together, or against each other."""
    cosine = (0.3 if together else -0.2) + 0.01 * seed
    pair, norm = ("image", "text"), {"image": 2.0, "text": 1.0}
    reports = [GradientReport(norm, {pair: cosine}, {pair: 0.5}, step) for step in (0, 25)]
    return [report.to_json() for report in reports]


def png(color: tuple[int, int, int], size: int = 8) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (size, size), color)
    image.putpixel((1, 0), (255, 255, 255))
    image.save(out, "PNG")
    return out.getvalue()


def fill(out, result: dict, traces: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(result))
    (out / "curves.json").write_text(json.dumps(traces))
    (out / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (out / "recipe.yaml").write_text(RECIPE)
    shown = {
        "image": [(png((200, 30, 30)), "png", "<b>red</b> square")],
        "text": [(b"a <script>alert(1)</script> caption", "txt", "red square")],
    }
    save_samples(out, shown)


class Links(HTMLParser):
    """Everything a page would fetch, and the text it shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "data")
        self.fetched += [value for name, value in attrs if name in names and value]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("runs") / "one"
    result = compare(3.0)
    fill(out, result, curves(result))
    return write_report(out).read_text(encoding="utf-8")


def test_question_answer_and_verdict(page):
    question = "Does unpaired text make the image model better at 8 labelled images per class?"
    assert f"<h1>{question}</h1>" in page
    assert "Yes, unpaired text makes the image model better" in page
    assert '<span class="badge">Gain shown</span>' in page


def test_a_report_needs_no_network(page):
    links = Links(page)
    assert all(link.startswith(("data:", "#")) for link in links.fetched)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_everything_asked_for_is_in_it(page):
    for part in (
        "Validation accuracy (%)",
        "Training loss, image",
        "target only",
        "control, permuted",
        "deranged",
        "data:image/png;base64,",
        "3 of 2400",
        "image and text: 7 (50%)",
        "image and text share 7 sources",
        "3:34",
        "uml compare shapes",
        "ratio: 1.0",
        "2.11.0",
        "0123456789ab, with local changes",
        "4,800",
    ):
        assert part in page, part
    assert page.count("<circle") == 3 * 5 * 2  # a dot per seed for each arm and each difference


def test_gradients_are_told_beside_those_of_the_control(page):
    assert "same way as image in 100 % of the measured steps" in page
    assert "the permuted control in 0 %" in page
    assert "the meaning of text makes it pull more with image" in page
    assert "Cosine of the gradients" in page and "Gradient norm on the shared weights" in page


def foretold(verdict: str) -> dict:
    geometry = {"value": 0.41, "low": 0.3, "high": 0.52} if verdict == "likely" else None
    rank = {"rank": {"value": 3.0, "low": 2.5, "high": 3.5}, "samples": 9, "dimensions": 4}
    one = {
        "geometry": geometry,
        "p_value": 0.001,
        "classes": 48,
        "zero_shot": None,
        "chance": 2.1,
        "target_rank": rank,
        "auxiliary_rank": rank,
        "verdict": verdict,
        "sentence": f"text is {verdict} to help image",
    }
    return {"verdict": verdict, "auxiliaries": {"text": one}, "record": {"sentence": "So far ..."}}


@pytest.mark.parametrize(
    ("verdict", "gain", "said"),
    [
        ("likely", 3.0, "The forecast was right: likely to help, and a gain was shown."),
        ("likely", 0.0, "The forecast was wrong: likely to help, and no gain was shown."),
        ("unlikely", 0.0, "The forecast was right: unlikely to help, and no gain was shown."),
        ("open", 3.0, "The forecast left it open; a gain was shown."),
    ],
)
def test_the_forecast_stands_beside_what_came(tmp_path, verdict, gain, said):
    result = compare(gain) | {"forecast": foretold(verdict)}
    fill(tmp_path, result, curves(result))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    for part in ("Was it to be expected?", f"text is {verdict} to help image", said, "So far ..."):
        assert part in text
    assert ("Rank correlation of class similarities" in text) == (verdict == "likely")


@pytest.mark.parametrize("slope", [0.5, 0.0])
def test_an_exchange_rate_has_its_section(tmp_path, slope):
    rows = [(i, j, s, 30 + i + slope * j + 0.1 * s) for s in (0, 1) for i in (1, 2) for j in (0, 4)]
    found = exchange_rate(*zip(*rows, strict=True), words_per_sample=8.0)
    names = {"target": "image", "auxiliary": "text", "words_per_sample": 8.0}
    entries = [compare(3.0, shots=1), compare(3.0, shots=2)]
    result = {"target": "image", "shots": [1, 2], "results": entries}
    result["exchange"] = names | found.to_json()
    fill(tmp_path, result, {"results": [curves(entry) for entry in entries]})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "What is one image sample worth?" in text and found.sentence in text
    assert "One text sample has 8 words." in text
    assert ("not identifiable</text>" in text.replace("\n", "")) == (slope == 0)
    assert f"<td>{31 + 4 * slope + 0.05:.1f}</td>" in text
    terminal.print_answer(result, out := io.StringIO())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("1 per class") for line in lines)
    assert ("Not identifiable" if slope == 0 else "One image sample is worth 2 text") in str(lines)


def test_what_stands_in_the_data_is_not_run(page):
    assert "<script" not in page
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; caption" in page
    assert "&lt;b&gt;red&lt;/b&gt; square" in page


def test_charts_follow_the_colour_scheme_and_share_no_ids(page):
    chart = re.search(r"<figure>(<svg.*?</svg>)\s*</figure>", page, re.DOTALL).group(1)
    assert "var(--arm-uml)" in chart
    assert not [value for value in plots.COLOURS.values() if value in chart]
    assert "@media screen and (prefers-color-scheme: dark)" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert used <= set(ids)


def test_without_a_shown_gain_none_is_claimed(tmp_path):
    result = compare(0.0)
    fill(tmp_path, result, curves(result))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<span class="badge">No gain shown</span>' in text
    assert "Yes, " not in text


def test_one_seed_is_reported_without_intervals(tmp_path):
    result = compare(3.0, seeds=1)
    fill(tmp_path, result, curves(result))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "one seed, no interval" in text
    assert "No gain shown" in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    plots.save_comparison(result, tmp_path / "compare.png")


def test_a_list_of_shots_gets_charts_and_a_section_each(tmp_path):
    entries = [compare(2.5, shots=2), compare(0.0, shots=4), compare(3.0, shots=None)]
    result = {"target": "image", "shots": [2, 4, None], "results": entries}
    fill(tmp_path, result, {"results": [curves(entry) for entry in entries]})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Against the number of labelled samples" in text
    assert "Gain shown at 2 and all, not at 4" in text
    for title in ("At 2 labelled images per class", "With all labelled data"):
        assert f"<h2>{title}</h2>" in text
    assert "10:42" in text  # the three wall times together
    plots.save_comparison(result, tmp_path / "compare.png")
    assert Image.open(tmp_path / "compare.png").width == 1500


def test_a_training_run_gets_a_report_too(tmp_path):
    result = compare(3.0)
    fill(tmp_path, result, {})
    for name in ("compare.json", "curves.json"):
        (tmp_path / name).unlink()
    history = {"steps": [25, 50], "val_accuracy": [9.0, 20.0], "losses": [{"image": 2.0}, {}]}
    metrics = {"target": "image", "shots": 8, "test_accuracy": 21.5, "val_accuracy": 20.0}
    metrics |= {"best_step": 50, "steps": 50, "history": history, "wall_seconds": 62.0}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "One training run: the image model at 8 labelled images per class" in text
    assert "<strong>21.5</strong>" in text
    assert "Training loss, image" in text
    assert "pull the same way" not in text  # nothing was measured
    history["gradients"] = pulls(True, 0)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "over 2 steps of one run" in write_report(tmp_path).read_text(encoding="utf-8")


def test_every_missing_input_is_named(tmp_path):
    result = compare(3.0)
    fill(tmp_path, result, curves(result))
    for name in ("curves.json", "recipe.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError) as caught:
        write_report(tmp_path)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert all(name in text for name in ("curves.json", "recipe.yaml", "environment.json"))
    assert not (tmp_path / "report.html").exists()


def test_the_verb(tmp_path, capsys):
    result = compare(3.0)
    fill(tmp_path / "run", result, curves(result))
    assert cli.main(["report", str(tmp_path / "run"), "--dry-run"]) == 0
    assert not (tmp_path / "run" / "report.html").exists()
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "b" / "report.html")}
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "compare.json" in capsys.readouterr().err
