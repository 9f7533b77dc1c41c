import pickle

import numpy as np
import pytest

from pipelines.streams.plan import Plan
from uml_core.errors import UserError


def plan(**changes):
    return Plan(**{"num_rows": 50, "batch_size": 8, "seed": 3, "modality": "image", **changes})


def test_every_epoch_is_a_permutation_and_epochs_differ():
    rows = plan().rows(0, 150).reshape(3, 50)
    assert all(sorted(epoch) == list(range(50)) for epoch in rows)
    assert (rows[0] != rows[1]).any() and (rows[1] != rows[2]).any()


def test_batches_tile_the_positions_and_span_epochs():
    whole = plan().rows(0, 8 * 20)
    assert np.concatenate([plan().batch(b) for b in range(20)]).tolist() == whole.tolist()
    assert len(plan().batch(6)) == 8  # positions 48..55: two epochs in one batch
    assert plan().num_batches == 7


def test_the_plan_is_pure_and_survives_pickling():
    copy = pickle.loads(pickle.dumps(plan()))
    assert copy == plan()
    assert copy.rows(30, 90).tolist() == plan().rows(30, 90).tolist()
    assert (copy.randoms(5, 4) == plan().randoms(5, 4)).all()


def test_the_order_is_frozen_for_checkpoints_written_by_older_versions():
    assert plan().batch(0).tolist() == FIRST_BATCH
    assert plan(num_rows=1000).rows(0, 3000)[-3:].tolist() == LAST_OF_EPOCH_TWO
    assert plan().randoms(7, 2)[0].tolist() == pytest.approx(RANDOMS, abs=1e-15)


def test_modalities_of_equal_size_and_seed_are_not_paired():
    n = 1000
    image = plan(num_rows=n).rows(0, n)
    text = plan(num_rows=n, modality="text").rows(0, n)
    assert (image == text).sum() < 10  # about one fixed point is expected by chance
    assert plan(num_rows=n, seed=4).rows(0, n).tolist() != image.tolist()
    assert (plan().randoms(0, 3) != plan(modality="text").randoms(0, 3)).all()


def test_randoms_are_uniform_and_change_with_the_batch():
    u = plan(batch_size=1000).randoms(0, 5)
    assert u.shape == (1000, 5) and u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.01
    assert (u != plan(batch_size=1000).randoms(1, 5)).all()


def test_one_row_repeats_forever():
    assert plan(num_rows=1).batch(10**6).tolist() == [0] * 8


def test_sequential_plan_is_finite():
    p = plan(shuffle=False)
    assert p.rows(0, 100).tolist() == list(range(50))
    assert p.batch(6).tolist() == [48, 49] and len(p.batch(7)) == 0


def test_windows_keep_neighbours_together():
    p = plan(num_rows=60, window=20, shard_sizes=(20, 20, 20))
    for epoch in range(4):
        rows = p.rows(60 * epoch, 60 * (epoch + 1))
        assert sorted(rows) == list(range(60))
        shards = rows.reshape(3, 20) // 20
        assert (shards == shards[:, :1]).all()  # a window touches one shard here
        assert (np.diff(rows) != 1).any()  # and is shuffled inside
    orders = {tuple(p.rows(60 * e, 60 * e + 60)[::20] // 20) for e in range(8)}
    assert len(orders) > 1  # shards come in another order


@pytest.mark.parametrize(
    "change",
    [{"num_rows": 0}, {"batch_size": 0}, {"seed": -1}, {"window": 0}, {"window": 4}],
)
def test_impossible_plans_are_refused(change):
    with pytest.raises(UserError):
        plan(**change)


FIRST_BATCH = [34, 43, 3, 48, 21, 18, 22, 29]
LAST_OF_EPOCH_TWO = [136, 715, 877]
RANDOMS = [0.7759085113098508, 0.7639928292853256]
