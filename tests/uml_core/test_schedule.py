import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from uml_core.schedule import Schedule, Warmup, cumulative, steps_of_epochs

STEPS = 60
ratio = st.floats(0, 5, allow_nan=False) | st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.5, 2.0])
piecewise = st.lists(st.tuples(st.integers(1, STEPS), ratio), unique_by=lambda p: p[0], max_size=4)
ratios = ratio | st.builds(lambda first, rest: ((0, first), *sorted(rest)), ratio, piecewise)
warmups = st.none() | st.builds(Warmup, st.sampled_from(["x", "a"]), st.integers(1, 20))


def schedule(warmup=None, **of):
    return Schedule("x", of, STEPS, warmup)


def brute_force(ratio, t, since=0):
    """Batches called for by target batches since..t-1, one by one."""
    if not isinstance(ratio, tuple):
        return ratio * max(0, t - since)
    return sum([v for start, v in ratio if start <= s][-1] for s in range(since, t))


@given(ratios, st.integers(0, STEPS))
def test_cumulative_is_the_sum_of_the_ratio_over_target_batches(ratio, t):
    assert cumulative(ratio, t) == pytest.approx(brute_force(ratio, t), abs=1e-9)


@given(ratios, ratios, warmups)
@settings(max_examples=60)
def test_every_prefix_is_within_one_batch_of_the_exact_share(a, b, warmup):
    plan = schedule(warmup, a=a, b=b)
    alone = warmup.steps if warmup and warmup.modality == "x" else 0
    taken = {"x": 0, "a": 0, "b": 0}
    for step in range(plan.total):
        assert plan.consumed(step) == taken
        counts = plan.counts(step)
        assert all(n > 0 for n in counts.values())
        for name, n in counts.items():
            taken[name] += n
        t = max(0, step + 1 - plan.lead)
        extra = {"x": 0, "a": min(step + 1, plan.lead), "b": 0}
        for name, r in (("a", a), ("b", b)):
            exact = brute_force(r, max(t, alone), alone)
            assert abs(taken[name] - extra[name] - exact) <= 1
        assert taken["x"] == t
    assert plan.consumed(plan.total) == taken


@given(ratios)
@settings(max_examples=60)
def test_a_step_takes_its_ratio_rounded_up_or_down(a):
    plan = schedule(a=a)
    for t in range(STEPS):
        due = brute_force(a, t + 1, t)
        assert abs(plan.counts(t).get("a", 0) - due) < 1 + 1e-6


def test_counts_of_known_ratios():
    def taken(r, steps=8):
        return [schedule(a=r).counts(step).get("a", 0) for step in range(steps)]

    assert taken(0.0) == [0] * 8
    assert taken(1.0) == [1] * 8
    assert taken(3.0) == [3] * 8
    assert sum(taken(0.25)) == 2 and max(taken(0.25)) == 1
    assert taken(0.5) == [1, 0] * 4
    assert sorted(taken(1.5)) == [1] * 4 + [2] * 4
    assert sum(schedule(a=1 / 3).counts(s).get("a", 0) for s in range(STEPS)) == STEPS // 3
    assert taken(((0, 0.0), (4, 2.0))) == [0] * 4 + [2] * 4


def test_target_comes_first_and_modalities_keep_their_order():
    assert list(schedule(b=1.0, a=1.0).counts(0)) == ["x", "b", "a"]


def test_warmup_on_the_target_takes_the_first_target_batches_alone():
    plan = schedule(Warmup("x", 5), a=2.0)
    assert plan.lead == 0 and plan.total == STEPS
    assert [plan.counts(s) for s in range(5)] == [{"x": 1}] * 5
    assert plan.counts(5) == {"x": 1, "a": 2}
    assert plan.consumed(STEPS) == {"x": STEPS, "a": 2 * (STEPS - 5)}


@given(st.integers(0, 9), st.integers(1, 400), st.integers(1, 64))
def test_epochs_end_with_the_batch_that_takes_their_last_sample(epochs, samples, batch_size):
    steps = steps_of_epochs(epochs, samples, batch_size)
    assert steps * batch_size >= epochs * samples
    assert (steps - 1) * batch_size < epochs * samples


def test_parts_of_an_epoch_by_hand():
    assert steps_of_epochs(3, 100, 8) == 38
    assert steps_of_epochs(0.5, 100, 10) == 5
    assert steps_of_epochs(1.1, 100, 10) == 11  # 1.1 * 100 / 10 is above 11 in floating point
    assert steps_of_epochs(0, 100, 8) == 0


def test_warmup_on_an_auxiliary_takes_steps_of_its_own():
    plan = schedule(Warmup("a", 5), a=1.0, b=1.0)
    assert plan.lead == 5 and plan.total == STEPS + 5
    assert [plan.counts(s) for s in range(5)] == [{"a": 1}] * 5
    assert plan.counts(5) == {"x": 1, "a": 1, "b": 1}
    assert plan.consumed(plan.total) == {"x": STEPS, "a": STEPS + 5, "b": STEPS}


def test_warmup_on_a_modality_that_an_arm_does_not_take():
    plan = schedule(Warmup("a", 5))
    assert plan.total == STEPS + 5
    assert plan.consumed(plan.total) == {"x": STEPS, "a": 5}


@pytest.mark.parametrize(
    ("plan", "alike"),
    [
        (schedule(), True),
        (schedule(a=0.0), True),
        (schedule(a=2.0, b=1.0), True),
        (schedule(a=0.5), False),
        (schedule(a=1.5), False),
        (schedule(a=((0, 1.0), (5, 2.0))), False),
        (schedule(Warmup("x", 1), a=1.0), False),
        (schedule(Warmup("a", 1), a=1.0), False),
    ],
)
def test_constant_means_that_every_step_takes_the_same_modalities(plan, alike):
    assert plan.constant() is alike
    if alike:
        assert len({tuple(plan.counts(s)) for s in range(plan.total)}) == 1


def meetings(plan, every):
    return [s for s in range(plan.total) if plan.first_meeting(s, every)]


def test_each_auxiliary_meets_the_target_once_in_a_window_at_its_first_step_there():
    assert meetings(schedule(a=1.0, b=3.0), 4) == list(range(0, STEPS, 4))
    assert meetings(schedule(), 4) == meetings(schedule(a=0.0), 4) == []
    # a comes at 0, 2, 4 ..., b at 1, 5, 9 ...: they never share a step.
    never = schedule(a=0.5, b=0.25)
    assert [s for s in meetings(never, 8) if s < 24] == [0, 1, 8, 9, 16, 17]
    # Windows shorter than a modality's period: those that it leaves out have no step.
    assert [s for s in meetings(schedule(b=0.25), 2) if s < 12] == [1, 5, 9]


def test_warmup_steps_on_one_modality_are_no_meetings():
    assert meetings(schedule(Warmup("x", 5), a=1.0), 4)[:3] == [5, 8, 12]
    assert meetings(schedule(Warmup("a", 5), a=1.0), 4)[:3] == [5, 8, 12]
