"""FSDP2 learns what one process learns, holds half of it per rank, and its checkpoints fit all."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import both

from uml_core.errors import UserError
from uml_core.recipe import from_dict


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return both(Path(__file__).with_name("sharded_ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", ["joint", "alternate", "self-supervised", "clip", "skip", "bf16"])
def test_sharded_ranks_learn_what_one_process_learns(ranks, case):
    one, two = ranks[0][case]["one"], ranks[0][case]["two"]
    close = {"rel": 0.02} if case == "bf16" else {"rel": 1e-5}
    assert len(one["losses"]) == len(two["losses"]) == 4
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, **close)
    assert one["checksum"] == pytest.approx(two["checksum"], rel=1e-2 if case == "bf16" else 1e-3)
    assert one["skipped"] == two["skipped"] == (case == "skip")
    other = ranks[1][case]["two"]
    assert two["losses"] == other["losses"] and two["checksum"] == other["checksum"]


def test_every_weight_is_shared_out(ranks):
    first, second = (ranks[rank]["joint"]["two"] for rank in (0, 1))
    assert first["sharded"] == second["sharded"] == 1
    assert first["held"] + second["held"] == pytest.approx(1)
    assert 0.4 < first["held"] < 0.6
    assert ranks[0]["joint"]["one"]["sharded"] == 0


@pytest.mark.parametrize("where", ["on-sharded", "on-ddp", "on-one"])
def test_a_checkpoint_goes_on_in_any_way_of_sharing(ranks, where):
    whole, went_on = ranks[0]["joint"]["one"], ranks[0][where]
    for a, b in zip(whole["losses"], went_on["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert went_on["checksum"] == pytest.approx(whole["checksum"], rel=1e-3)


def test_what_needs_whole_gradients_is_refused(tiny_recipe):
    train = {**tiny_recipe["train"], "parallel": "fsdp"}
    model = {**tiny_recipe["model"], "logit_scale": "learned"}
    with pytest.raises(UserError) as refused:
        from_dict({**tiny_recipe, "train": train, "model": model})
    assert {p.partition(":")[0] for p in refused.value.problems} == {
        "train.gradients_every",
        "model.logit_scale",
    }
    from_dict({**tiny_recipe, "train": {**train, "gradients_every": 0}})


@pytest.mark.parametrize(
    "workers, said",
    [
        ([3, 1], "a number, or [least, most]"),
        ([1, 2, 3], "a number, or [least, most]"),
        ([0, 2], "at least 1"),
        (0, "at least 1"),
        ([1, 20], "less than one sample for each of 20 workers"),
    ],
)
def test_numbers_of_workers_are_checked(tiny_recipe, workers, said):
    with pytest.raises(UserError, match="train") as refused:
        from_dict({**tiny_recipe, "train": {**tiny_recipe["train"], "workers": workers}})
    assert len(refused.value.problems) == 1 and said in refused.value.problems[0]


def test_an_elastic_group_has_a_least_and_a_most(tiny_recipe):
    made = from_dict({**tiny_recipe, "train": {**tiny_recipe["train"], "workers": [1, 3]}})
    assert (made.train.least_workers, made.train.most_workers) == (1, 3)
    assert from_dict(tiny_recipe).train.least_workers == tiny_recipe["train"]["workers"]
    shared = {**tiny_recipe["train"], "worker_resources": {"GPU": 0.5}}
    with pytest.raises(UserError, match="cannot share a GPU"):
        from_dict({**tiny_recipe, "train": shared})
