"""The end of a sweep in the terminal, from what sweep.json holds."""

import io

import pytest

from pipelines.reporting.sweep_terminal import print_sweep


def trial(key, kind, value, mean):
    score = {"mean": mean, "ci95": [mean - 1, mean + 1]}
    return {
        "key": key,
        "kind": kind,
        "status": "finished",
        "values": {"batches": value},
        "score": score,
        "flops": 2.5e9,
    }


def gain(mean):
    return {"mean": mean, "ci95": [mean - 1, mean + 1]}


def sweep(confirmation):
    best = trial("one", "point", 2, 61.0)
    return {
        "target": "image",
        "auxiliaries": ["text"],
        "trials": [best, trial("zero", "baseline", 0, 55.0)],
        "baseline": "zero",
        "best": best,
        "importance": {"knobs": {"batches": {"share": 0.5, "p": 0.02}}},
        "confirmed": confirmation is not None,
        "confirmation": confirmation,
        "sentence": "Mix 2 text batches per image batch.",
        "adaptive_sentence": None,
    }


@pytest.mark.parametrize("init", [False, True])
def test_a_confirmation_shows_the_differences_that_it_measured(init):
    """UML with a class-mean head is an arm of some recipes only."""
    entry = {"seeds": [7, 8], "gain": gain(2.6), "gain_over_control": gain(3.4)}
    entry |= {"control_gain": gain(-0.8), **({"init_gain": gain(4.2)} if init else {})}
    stream = io.StringIO()
    print_sweep(sweep(entry), stream)
    said = stream.getvalue()
    assert "on 2 fresh seeds, test" in said and "+2.6" in said and "+3.4" in said
    assert ("class-mean head" in said) == ("+4.2" in said) == init
    assert "Mix 2 text batches per image batch." in said


def test_without_a_confirmation_there_are_no_differences():
    stream = io.StringIO()
    print_sweep(sweep(None), stream)
    said = stream.getvalue()
    assert "no other data (baseline)" in said and "fresh seeds" not in said
