"""The embed suite: its ratio is against the faster plain way, starts and warm-up left out."""

from __future__ import annotations

import dataclasses

import pytest

from pipelines.benchmarks import embed


def test_the_ratio_is_against_the_faster_plain_way_and_the_worst_encoder_counts():
    found = {
        "vision": {"embed": [9.0, 90.0, 8.0], "loop": [5.0] * 3, "processes": [10.0] * 3},
        "text": {"embed": [30.0] * 3, "loop": [20.0] * 3, "processes": [10.0] * 3},
    }
    result = embed.summary(found)
    assert result["by_encoder"] == {"vision": pytest.approx(0.9), "text": pytest.approx(1.5)}
    assert result["embed_vs_plain"] == pytest.approx(0.9)
    assert ["embed_vs_plain vision", "0.90", "≥ 0.9", "1.0"] in embed.rows(result)


def test_throughput_leaves_out_warm_up_and_counts_pauses():
    def part(actor, began, ended):
        return {"actor": actor, "began": began, "ended": ended, "samples": 10}

    slow_start = [part(1, 0, 50), part(1, 50, 90)]
    steady = [part(1, 90, 91), part(1, 92, 93)]  # a second of pause between them
    other = [part(2, 0, 1), part(2, 1, 2), part(2, 100, 101)]
    assert embed.throughput([*steady, *slow_start]) == pytest.approx(20 / 3)
    assert embed.throughput([*slow_start, *steady, *other]) == pytest.approx(20 / 3 + 10)


@pytest.mark.ray
@pytest.mark.slow
def test_all_contenders_work(ray_cluster, tmp_path):
    [case, *_] = [c for c in embed.CASES if c.name == "text"]
    made = embed._Measured(dataclasses.replace(case, part=16, parts=1), tmp_path)
    speeds = made.once(0)
    assert set(speeds) == {"embed", "loop", "processes"} and min(speeds.values()) > 0
