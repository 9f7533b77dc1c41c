"""What a person sees without a terminal: plain text of at most 80 columns, progress in lines."""

import io
import re

import pytest
from rich.console import Console

from pipelines.reporting import terminal
from uml_core.statistics import paired_gain


def compare(**more):
    accuracy = {
        "unimodal": [19.0, 20.5, 18.2],
        "unimodal_direct": [18.0, 19.5, 18.9],
        "uml": [22.4, 23.1, 21.9],
        "uml_init": [22.0, 23.0, 21.0],
        "uml_permuted": [18.8, 20.9, 17.9],
    }
    base, uml, control = (accuracy[arm] for arm in ("unimodal", "uml", "uml_permuted"))
    return {
        "target": "image",
        "auxiliary": ["text"],
        "shots": 8,
        "seeds": [0, 1, 2],
        "arms": {arm: {"test_accuracy": values} for arm, values in accuracy.items()},
        "baseline": "unimodal",
        "gain": paired_gain(uml, base).to_json(),
        "control_gain": paired_gain(control, base).to_json(),
        "gain_over_control": paired_gain(uml, control).to_json(),
        **more,
    }


def printed(result) -> str:
    out = io.StringIO()
    terminal.print_answer(result, out)
    return out.getvalue()


def test_the_answer_is_plain_and_fits_80_columns():
    text = printed(compare())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    # mean of 22.4 23.1 21.9, t(0.975, 2) = 4.303
    assert re.search(r"^UML +22\.5 ± 1\.5 % +3$", text, re.MULTILINE)
    assert re.search(r"^target only \(baseline\) +19\.2 ± 2\.9 % +3$", text, re.MULTILINE)
    assert re.search(r"^UML − target only +\+3\.2 +\+1\.8 to \+4\.6$", text, re.MULTILINE)
    assert "Yes, unpaired text makes the image model better" in text


def test_several_shot_counts_stand_side_by_side_in_80_columns():
    entries = [compare(shots=k) for k in (1, 2, 4, 8, 16)]
    entries[1]["baseline"] = "unimodal_direct"
    base = entries[1]["arms"]["unimodal_direct"]["test_accuracy"]
    uml = entries[1]["arms"]["uml"]["test_accuracy"]
    entries[1]["gain"] = paired_gain(uml, base).to_json()
    text = printed({"target": "image", "shots": [1, 2, 4, 8, 16], "results": entries})
    assert max(map(len, text.splitlines())) <= 80
    [accuracy, difference] = re.findall(r"^UML  .*$", text, re.MULTILINE)
    assert accuracy.split() == ["UML", *["22.5", "±1.5"] * 5]
    # 22.4 - 18.0, 23.1 - 19.5, 21.9 - 18.9: the baseline of k = 2 is the other arm
    assert difference.split() == ["UML", "+3.2", "±1.4", "+3.7", "±1.7", *["+3.2", "±1.4"] * 3]
    [marked] = re.findall(r"^target only, direct .*$", text, re.MULTILINE)
    assert marked.count("*") == 1 and marked.split()[5] == "*18.8"


def test_more_shot_counts_than_fit_stand_below_each_other():
    entries = [compare(shots=k) for k in range(1, 8)]
    text = printed({"target": "image", "shots": list(range(1, 8)), "results": entries})
    assert max(map(len, text.splitlines())) <= 80
    assert [text.count(f"k = {k}") for k in range(1, 8)] == [2] * 7


def test_one_seed_prints_no_interval():
    one = compare(seeds=[0], arms={"uml": {"test_accuracy": [22.4]}})
    for key in ("gain", "control_gain", "gain_over_control"):
        one[key] = {"mean": 3.0, "ci95": None}
    text = printed(one)
    assert re.search(r"^UML +22\.4 % +1$", text, re.MULTILINE)
    assert "none" in text
    assert "No gain could be shown: one seed gives no interval" in text


def test_paths_are_not_broken(capsys):
    path = "/" + "long/" * 40 + "report.html"
    terminal.print_paths({"report": path, "MLflow": "mlflow ui"})
    assert f"report  {path}\n" in capsys.readouterr().out


def test_problems_are_listed_on_stderr(capsys):
    terminal.print_errors(["first thing", "second thing"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "2 problems; nothing was written:\n  - first thing\n  - second thing\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    with terminal.Progress("Training", total=40, unit="steps", every=0.0) as progress:
        progress.update(10, note="uml, seed 3")
        progress.advance(10)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 3  # two updates and the end
    assert re.fullmatch(
        r"Training: 10/40 steps, 0:00 passed, about 0:00 left, uml, seed 3", lines[0]
    )
    assert lines[1].startswith("Training: 20/40 steps")


def test_progress_without_a_terminal_does_not_flood(capsys):
    with terminal.Progress("Training", total=1000) as progress:
        for _ in range(1000):
            progress.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("total", [5, None])
def test_progress_on_a_terminal_is_a_bar(monkeypatch, total):
    screen = io.StringIO()
    fake = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "console", lambda stream=None: fake)
    with terminal.Progress("Training", total=total) as progress:
        progress.update(5, note="uml")
        progress.say("a note")
    shown = screen.getvalue()
    assert "Training: uml" in shown
    assert "5/5" in shown if total else "5/?" in shown
    assert "a note" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_clock(seconds, text):
    assert terminal.clock(seconds) == text


def test_a_long_url_in_a_note_can_be_copied(capsys):
    url = f"http://127.0.0.1:40669/{'folder/' * 15}text-train-000001.tar"
    terminal.note(f"A read takes long: {url} (11 s so far).")
    with terminal.Progress("Training", total=3) as progress:
        progress.say(f"The last checkpoint is {url};")
    said = capsys.readouterr().err
    assert f"{url} (11 s so far)." in said and f"{url};" in said
