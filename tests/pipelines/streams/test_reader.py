import io
import json
import pickle
import threading
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from pipelines.streams.assemble import Assembler, Group
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from pipelines.streams.reader import (
    BatchStream,
    DecodedCache,
    iter_plan,
    load_all,
    ray_stream,
)
from pipelines.streams.shards import Sample, load_index, subset, write_shards
from pipelines.streams.source import Places, Segment, chunks_of, local_tables, slice_of
from uml_core.errors import RunError
from uml_core.modalities import KINDS


def png(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(folder, n=30, bad=(), per_shard=12):
    """Shards of n pictures with label i % 3; those in `bad` cannot be decoded."""
    samples = [
        Sample(f"p{i:03d}", "png", b"no picture" if i in bad else png(i), i % 3) for i in range(n)
    ]
    write_shards(samples, str(folder), "image-train", "image", per_shard=per_shard)
    return load_index("image-train-*.tar", str(folder), "image")


def image(**options):
    return KINDS["image"](KINDS["image"].Options(size=8, **options))


def plan(index, **changes):
    return Plan(
        **{"num_rows": len(index), "batch_size": 8, "seed": 1, "modality": "image"} | changes
    )


def same(a, b):
    return (
        a[:2] == b[:2]
        and a.batch.keys == b.batch.keys
        and torch.equal(a.batch.x, b.batch.x)
        and torch.equal(a.batch.y, b.batch.y)
    )


def keys_of(items):
    return [key for item in items for key in item.batch.keys]


def test_batches_hold_the_rows_of_the_plan(tmp_path):
    index = pictures(tmp_path)
    p = plan(index)
    items = list(iter_plan(index, p, image(), first=2, count=6))
    assert [item.number for item in items] == [2, 3, 4, 5, 6, 7]
    for item in items:
        assert item.batch.keys == [index.keys[row] for row in p.batch(item.number)]
        assert item.batch.y.tolist() == index.labels[p.batch(item.number)].tolist()
        assert item.batch.x.shape == (8, 3, 8, 8)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_any_number_of_ranks_sees_the_same_batches(tmp_path, augment):
    index, modality = pictures(tmp_path), image(augment=augment)
    whole = list(iter_plan(index, plan(index), modality, count=9))
    for world in (2, 3):
        parts = [
            list(iter_plan(index, plan(index), modality, count=9, rank=rank, world=world))
            for rank in range(world)
        ]
        for item, *slices in zip(whole, *parts, strict=True):
            assert keys_of(slices) == item.batch.keys
            assert torch.equal(torch.cat([part.batch.x for part in slices]), item.batch.x)


def test_more_ranks_than_rows_of_a_batch():
    assert [slice_of(2, rank, 3) for rank in range(3)] == [(0, 0), (0, 1), (1, 2)]


def test_augmentation_is_part_of_the_plan(tmp_path):
    index, modality = pictures(tmp_path), image(augment="crop")
    [a] = iter_plan(index, plan(index), modality, count=1)
    [b] = iter_plan(index, plan(index), modality, count=1)
    [c] = iter_plan(index, plan(index), modality, count=1, augment=False)
    assert same(a, b) and not torch.equal(a.batch.x, c.batch.x)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(tmp_path, threads):
    index, modality = pictures(tmp_path), image(augment="crop")
    inline = list(iter_plan(index, plan(index, batch_size=20), modality, count=12))
    ahead = list(
        iter_plan(index, plan(index, batch_size=20), modality, count=12, decode_threads=threads)
    )
    assert len(ahead) == 12 and all(same(a, b) for a, b in zip(inline, ahead, strict=True))


def test_segments_follow_each_other(tmp_path):
    index = pictures(tmp_path)
    small = subset(index, [3, 1, 2])
    segments = [
        Segment(index, plan(index), 5, 2),
        Segment(small, plan(small, seed=2, batch_size=2), 0, 3),
        Segment(index, plan(index, seed=3), 0, 1),
    ]
    items = list(BatchStream(local_tables(segments), segments, image(), decode_threads=1))
    assert [item[:2] for item in items] == [(0, 5), (0, 6), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert sorted(keys_of(items[2:5])) == sorted(small.keys * 2)


def test_chunks_tile_the_work_and_start_small(tmp_path):
    index = pictures(tmp_path)
    segments = [Segment(index, plan(index), 3, 5000), Segment(index, plan(index), 0, 40_000_000)]
    chunks = chunks_of(segments)
    assert (chunks[0].first, chunks[0].stop) == (3, 4)
    assert len(chunks) < 6000
    for segment, (first, stop) in enumerate([(3, 5003), (0, 40_000_000)]):
        mine = [c for c in chunks if c.segment == segment]
        assert mine[0].first == first and mine[-1].stop == stop
        assert all(a.stop == b.first for a, b in pairwise(mine))


def test_an_evaluation_pass_is_complete_and_in_order(tmp_path):
    index = pictures(tmp_path)
    batches = load_all(index, image(augment="crop"), 1 << 20, batch_size=7)
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert [key for batch in batches for key in batch.keys] == index.keys
    with pytest.raises(RunError, match="memory"):
        load_all(index, image(), 100)


def test_a_bad_slot_is_refilled_by_the_next_good_row(tmp_path):
    index = pictures(tmp_path, bad={4, 5})
    p = plan(index, batch_size=10)
    places = p.rows(0, 60).tolist()
    expected = []
    for position in range(30):
        while places[position] in (4, 5):
            position += 1
        expected.append(index.keys[places[position]])
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 0.1, modality="image", rows=30)
    for world in (1, 2):
        for threads in (0, 2):
            parts = [
                list(
                    iter_plan(
                        index,
                        p,
                        image(),
                        rank=rank,
                        world=world,
                        decode_threads=threads,
                        quarantine=quarantine,
                    )
                )
                for rank in range(world)
            ]
            found = [keys_of(items) for items in zip(*parts, strict=True)]
            assert list(chain(*found)) == expected
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["p004", "p005"]  # each once
    assert all(line["url"].endswith("000000.tar") and line["error"] for line in lines)


def test_an_evaluation_leaves_bad_rows_out(tmp_path):
    index = pictures(tmp_path, n=9, bad={0, 1, 2, 8})
    batches = load_all(index, image(), 1 << 20, batch_size=3)
    assert [batch.keys for batch in batches] == [["p003", "p004", "p005"], ["p006", "p007"]]


def test_the_budget_ends_a_run_with_advice(tmp_path):
    index = pictures(tmp_path, bad={4, 5, 6})
    quarantine = Quarantine(tmp_path / "q.jsonl", 2, modality="image", rows=30)
    with pytest.raises(RunError, match=r"3 of 30 .* at most 2 .*uml verify"):
        list(iter_plan(index, plan(index), image(), quarantine=quarantine))


def test_the_fuse_ends_a_run_where_nothing_can_be_read(tmp_path):
    index = pictures(tmp_path, n=50, bad=range(50))
    quarantine = Quarantine(None, 1000, modality="image", rows=50)
    with pytest.raises(RunError, match="32 samples in a row"):
        list(iter_plan(index, plan(index), image(), quarantine=quarantine))


def test_a_shard_cut_off_after_indexing_is_quarantined(tmp_path):
    index = pictures(tmp_path, per_shard=30)
    shard = index.shards[0]
    with open(shard.url, "r+b") as file:
        file.truncate(int(shard.offsets[27]) + 10)
    quarantine = Quarantine(None, 5, modality="image", rows=30)
    items = list(iter_plan(index, plan(index), image(), quarantine=quarantine))
    assert {key for _, key in quarantine.errors} == {"p027", "p028", "p029"}
    assert all(len(item.batch) == 8 for item in items)


def test_a_shard_that_is_gone_ends_a_run_with_advice(tmp_path):
    index = pictures(tmp_path)
    (tmp_path / "image-train-000001.tar").unlink()
    for threads in (0, 1):
        with pytest.raises(RunError, match=r"000001.tar has gone.*--resume"):
            list(iter_plan(index, plan(index), image(), decode_threads=threads))


def test_decoded_samples_are_kept_up_to_a_size(tmp_path):
    index, modality = pictures(tmp_path), image()
    modality.num_random = 0  # nothing is drawn, so samples repeat unchanged
    cache = DecodedCache(10 * 3 * 8 * 8)
    first = list(iter_plan(index, plan(index), modality, count=12, cache=cache))
    assert cache.size == cache.limit
    again = list(iter_plan(index, plan(index), modality, count=12, cache=cache))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    crops = DecodedCache(1 << 20)
    list(iter_plan(index, plan(index), image(augment="crop"), count=2, cache=crops))
    assert crops.size == 0


def test_closing_early_leaves_no_thread(tmp_path):
    index = pictures(tmp_path)
    before = threading.active_count()
    with iter_plan(index, plan(index), image(), count=10**6, decode_threads=2) as stream:
        next(stream)
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert list(stream) == [] and stream.wait_seconds > 0


@pytest.mark.ray
@pytest.mark.parametrize("decode_in", ["threads", "tasks"])
def test_ray_delivers_what_this_process_would_read(ray_cluster, tmp_path, decode_in):
    index = pictures(tmp_path, bad={7})
    modality = image(augment="crop")
    segments = [Segment(index, plan(index), 3, 15), Segment(index, plan(index, seed=9), 0, 5)]
    for rank in range(2):
        place = {"rank": rank, "world": 2}
        tables = local_tables(segments, **place)
        plain = list(BatchStream(tables, segments, modality, **place, decode_threads=0))
        quarantine = Quarantine(tmp_path / f"{rank}.jsonl", 2, modality="image", rows=30)
        with ray_stream(
            segments, modality, **place, decode_in=decode_in, quarantine=quarantine
        ) as stream:
            found = list(stream)
        assert len(found) == 20 and all(same(a, b) for a, b in zip(plain, found, strict=True))
        assert [key for _, key in quarantine.errors] == ["p007"]


@pytest.mark.ray
@pytest.mark.parametrize("decode_in", ["threads", "tasks"])
def test_errors_of_read_tasks_reach_the_user(ray_cluster, tmp_path, decode_in):
    index = pictures(tmp_path, n=40, bad=range(40))
    segments = [Segment(index, plan(index), 0, 4)]
    quarantine = Quarantine(None, 1000, modality="image", rows=40)
    stream = ray_stream(segments, image(), decode_in=decode_in, quarantine=quarantine)
    with pytest.raises(RunError, match="32 samples in a row"):
        next(stream)
    (tmp_path / "image-train-000001.tar").unlink()
    with pytest.raises(RunError, match=r"000001.tar has gone"):
        list(ray_stream(segments, image(), decode_in=decode_in))


def test_what_decodes_in_tasks_can_travel_to_them(tmp_path):
    """With a cache, whose lock cannot: every process that decodes begins with an empty one."""
    index, modality = pictures(tmp_path), image()
    modality.num_random = 0
    segment = Segment(index, plan(index), 0, 1)
    cache = DecodedCache(1 << 20)
    here = Assembler(modality, Places.of_segments([segment]), cache=cache)
    [table] = local_tables([segment])
    [group] = Group.all_of(table)
    expected = here.batch(group)
    assert cache.size > 0
    there = pickle.loads(pickle.dumps(here))
    assert there.cache.limit == cache.limit and there.cache.size == 0
    assert torch.equal(there.batch(group).x, expected.x) and there.cache.size == cache.size
