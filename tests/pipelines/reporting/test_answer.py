"""The words of an answer: they must never claim more than the rule allows."""

import pytest

from pipelines.reporting import answer
from uml_core.statistics import Gain


def entry(gain, over, *, shots=8, seeds=5, **more):
    return {
        "target": "image",
        "auxiliary": ["text"],
        "shots": shots,
        "seeds": list(range(seeds)),
        "gain": Gain(*gain).to_json(),
        "gain_over_control": Gain(*over).to_json(),
        **more,
    }


SHOWN = ((3.1, (1.9, 4.3)), (4.0, (2.0, 6.0)))


def test_a_shown_gain_is_said_with_both_intervals():
    text = answer.sentence(entry(*SHOWN))
    assert text == (
        "Yes, unpaired text makes the image model better at 8 labelled images per class: "
        "+3.1 points (95 % interval +1.9 to +4.3) against the target alone, +4.0 points "
        "(95 % interval +2.0 to +6.0) against the control, 5 seeds."
    )
    assert answer.verdict(entry(*SHOWN)) == "Gain shown"


@pytest.mark.parametrize(
    ("gain", "over", "why"),
    [
        ((0.4, (-1.0, 1.8)), (0.1, (-1, 1)), "the interval contains zero"),
        ((3.1, (1.9, 4.3)), (0.4, (-1.0, 1.8)), "not clearly above the control"),
        ((-3.1, (-4.3, -1.9)), (-1.0, (-2, -0.5)), "makes the image model worse"),
        ((3.1, None), (4.0, None), "one seed gives no interval"),
    ],
)
def test_whatever_the_rule_does_not_allow_is_not_claimed(gain, over, why):
    compare = entry(gain, over, seeds=1 if gain[1] is None else 5)
    text = answer.sentence(compare)
    assert text.startswith("No gain could be shown")
    assert why in text
    assert answer.verdict(compare) == "No gain shown"
    assert not answer.is_shown(compare)


def test_several_shot_counts_get_one_sentence():
    none = ((0.4, (-1.0, 1.8)), (0.1, (-1, 1)))
    entries = [entry(*SHOWN, shots=2), entry(*none, shots=4), entry(*SHOWN, shots=8)]
    compare = {"target": "image", "shots": [2, 4, 8], "results": entries}
    assert answer.sentence(compare) == (
        "Yes, unpaired text makes the image model better by 3.1 to 3.1 points at 2 and 8 "
        "labelled samples per class; at 4 no gain could be shown."
    )
    assert answer.verdict(compare) == "Gain shown at 2 and 8, not at 4"
    assert answer.question(compare) == (
        "Does unpaired text make the image model better at 2, 4 and 8 labelled images per class?"
    )
    compare["results"] = [entry(*none, shots=2), entry(*none, shots=None)]
    assert answer.sentence(compare).startswith("No gain could be shown")
    assert "2 and all" in answer.sentence(compare)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "Does unpaired text make the image model better at 8 labelled images per class?"),
        ({"shots": 1}, "unpaired text make the image model better at 1 labelled image per class?"),
        ({"shots": None}, "make the image model better with all labelled data?"),
        ({"shots": None, "label_fraction": 0.1}, "better with labels for 10 % of the images?"),
        ({"label_fraction": 0.1}, "better at 8 labelled images per class?"),
        ({"auxiliary": ["text", "audio", "pen"]}, "Does unpaired text, audio and pen make"),
        ({"auxiliary": []}, "Does unpaired data of other modalities make the image model"),
        ({"target": "scan"}, "make the scan model better at 8 labelled scan samples per class?"),
    ],
)
def test_the_question_names_what_is_asked(more, text):
    assert text in answer.question(entry(*SHOWN) | more)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.14, "+3.1"), (-0.26, "−0.3"), (0.0, "+0.0"), (0.04, "+0.04"), (-0.004, "−0.004")],
)
def test_numbers_keep_their_side_of_zero(value, text):
    assert answer.number(value) == text


def test_remarks_say_what_went_wrong_and_nothing_else():
    assert answer.remarks({"skipped_updates": 0, "restarts": 0, "quarantined": 0}) == []
    said = answer.remarks({"skipped_updates": 3, "restarts": 2, "quarantined": 1})
    assert "3 updates were left out" in said[0] and "1 sample could not be used" in said[1]
    assert "started again 2 times" in said[2]
    arms = {
        "unimodal": {"skipped_updates": [0, 0], "diverged": []},
        "uml": {
            "skipped_updates": [0, 1],
            "diverged": [{"setting": {"lr": 1.0, "weight": 0.5}, "seed": 3, "step": 41}],
        },
    }
    said = answer.remarks(entry(*SHOWN, arms=arms))
    assert said[0].startswith("UML: 1 update was left out")
    assert said[1].startswith("UML with lr=1, weight=0.5: seed 3 diverged at step 41")
    assert len(answer.remarks({"target": "image", "results": [entry(*SHOWN, arms=arms)]})) == 2
