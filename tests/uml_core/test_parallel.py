"""Two processes of a group against one: the same losses, the same decisions."""

from pathlib import Path

import pytest
from ranks import both


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Every case of two_ranks.py in one process and in two, started once."""
    return both(Path(__file__).with_name("two_ranks.py"), tmp_path_factory.mktemp("ranks"))


CASES = [
    f"{setting}-{mode}-{ratio}"
    for setting in ("supervised", "self_supervised")
    for mode in ("joint", "alternate")
    for ratio in (0.5, 2.0)
]


@pytest.mark.parametrize(
    "case", [*CASES, "weight-0", "clip", "unimodal-alternate", "permuted", "frozen", "thaw"]
)
def test_two_ranks_learn_what_one_process_learns(two_ranks, case):
    """Equal losses on the same global batches over 20 steps, and both ranks agree exactly."""
    one, two = two_ranks[0][case]["one"], two_ranks[0][case]["two"]
    assert len(one["losses"]) == 20
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert one["norms"] == pytest.approx(two["norms"], rel=1e-4)
    assert len(one["gradients"]) == 7 * (not case.startswith(("weight", "unimodal", "frozen")))
    for a, b in zip(one["gradients"], two["gradients"], strict=True):
        assert a["norm"] | a["cosine"] == pytest.approx(b["norm"] | b["cosine"], 1e-4, 1e-4)
    assert one["losses"][-1]["x"] < one["losses"][0]["x"]
    assert two == two_ranks[1][case]["two"]  # the checksum of the weights with it


def test_a_non_finite_value_on_one_rank_is_left_out_on_both(two_ranks):
    one, two = two_ranks[0]["skip"]["one"], two_ranks[0]["skip"]["two"]
    assert one["skipped"] == two["skipped"] == 1 == two_ranks[1]["skip"]["two"]["skipped"]
    assert two == two_ranks[1]["skip"]["two"]
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_ranks_whose_metric_differs_by_an_ulp_choose_and_stop_alike(two_ranks):
    """Rank 0 decides: its metric never gains, so validation 1 is best and patience ends the run."""
    assert two_ranks[0]["ulp"] == two_ranks[1]["ulp"]
    assert two_ranks[0]["ulp"]["chosen"] == [1, 50.0, 4, True, [1, 2, 3, 4, 5]]
