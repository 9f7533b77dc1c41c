"""`uml plan`: counts are exact, times add up as the model says, and wrong input is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.running.forecast_time import Measured, Place, step_of
from pipelines.running.hardware import GPUS

AWS = str(Path(__file__).resolve().parents[2] / "cluster" / "aws.yaml")
PRICES = ["--price", "head=0.2", "--price", "data=0.1", "--price", "train=0.5"]


@pytest.fixture
def plan(write_recipe, tiny_recipe, tmp_path, capsys):
    def run(*argv: str) -> dict:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        command = ["plan", write_recipe(tiny_recipe), *argv, "--out", str(out), "--json"]
        assert cli.main(command) == 0
        made = json.loads(capsys.readouterr().out)
        assert json.loads((out / "plan.json").read_text()) == made
        return made

    return run


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_says_what_a_step_takes_here(plan, tmp_path):
    made = plan()
    short = made["short_run"]
    assert short["steps"] == 12 and short["around"] > 1  # so few steps: it is the whole run
    assert made["step_seconds"] == short["step"] > made["step_validation"] > 0
    assert made["around_seconds"] == short["around"]
    assert made["cost"] is None and made["nodes"] == {}
    assert not list(tmp_path.rglob("rehearsal"))


def test_counts(plan, tiny_data):
    made = plan("--cluster", AWS)
    assert (made["steps"], made["workers"]) == (12, 2)
    assert made["steps_per_epoch"] == pytest.approx(12 / 8)  # 4 shots of 3 classes, batch 8
    sizes = {
        name: [p["bytes"] for p in _samples(tiny_data, name)] for name in ("image", "text", "wave")
    }
    mean = {name: sum(v) / len(v) for name, v in sizes.items()}
    expected = 8 * (12 * mean["image"] + 12 * mean["text"] + 6 * mean["wave"])
    assert made["bytes_read"] == pytest.approx(expected, rel=0.1)  # the shots are a sample
    assert made["flops"] > 0 and made["tokens"] > 12 * 8 * 2
    assert made["step_parts"][made["bottleneck"]] == max(made["step_parts"].values())
    assert made["epoch_seconds"] == pytest.approx(made["step_seconds"] * 1.5)


def _samples(folder: Path, name: str) -> list[dict]:
    import tarfile

    suffix = {"image": ".png", "text": ".txt", "wave": ".npy"}[name]
    found = []
    for path in folder.glob(f"{name}-train-*.tar"):
        with tarfile.open(path) as tar:
            found += [{"bytes": m.size} for m in tar if m.name.endswith(suffix)]
    return found


def test_money_is_time_times_what_the_person_says(plan):
    made = plan("train.device=cuda", "--cluster", AWS, *PRICES)
    assert made["nodes"] == {"head": 1, "train": 2, "data": 8}
    hourly = 0.2 + 2 * 0.5 + 8 * 0.1
    assert made["cost_per_epoch"] == pytest.approx(hourly * made["epoch_seconds"] / 3600)
    whole = made["training_seconds"] + made["around_seconds"]
    assert made["cost"] == pytest.approx(hourly * whole / 3600)
    slowest = made["step_parts"][made["bottleneck"]]
    assert made["short_run"] is None and made["step_validation"] > 0
    assert made["step_seconds"] == pytest.approx(slowest + made["step_validation"])
    assert plan("train.device=cuda", "--cluster", AWS)["cost"] is None


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--price", "train=0.5"], "give --cluster with it"),
        (["--cluster", AWS, "--price", "trian=1"], "did you mean 'train'?"),
        (["--cluster", AWS, "--price", "train"], "write TYPE=AMOUNT"),
        (["--cluster", AWS, "train.device=cuda", "train.workers=5"], "at most 4"),
        (["--cluster", AWS, "train.device=cuda", "--gpu", "H10"], "did you mean 'H100'?"),
        (["--cluster", AWS.replace("aws", "local")], "no available_node_types"),
        (["--cluster", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_input_is_told(write_recipe, tiny_recipe, tmp_path, capsys, argv, said):
    path, out = write_recipe(tiny_recipe), tmp_path / "out"
    assert cli.main(["plan", path, *argv, "--out", str(out)]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not out.exists()


@pytest.fixture
def model(write_recipe, tiny_recipe):
    """step(place, parameters) of a recipe with given measurements."""
    from pipelines.running.data import make_round, open_data, resolved
    from uml_core.recipe import load

    raw = load(write_recipe(tiny_recipe))
    data = open_data(raw)
    recipe = resolved(raw, data)
    at = make_round(recipe, data, 0, 4)
    names = recipe.active
    found = Measured(
        compute=0.010,
        host=0.004,
        validate=0.030,
        decode=dict.fromkeys(names, 0.001),
        bytes=dict.fromkeys(names, 1e6),
        item=dict.fromkeys(names, 1e9),  # too large to be kept: every sample is decoded
        tokens=dict.fromkeys(names, 5.0),
        flops=dict.fromkeys(names, 1e12),
    )

    def step(place: Place, parameters: int = 1_000_000):
        return step_of(recipe, at, found, parameters, place)

    return step


def test_cores_are_shared_by_training_and_decoding(model):
    # A step takes 8 images, 8 texts and 4 waves: 20 samples, a millisecond each.
    alone = model(Place(workers=1, train_cpus=2))
    assert alone.parts["decoding"] == pytest.approx((0.020 + 2 * 0.010) / 2)
    assert alone.bottleneck == "decoding"
    many = model(Place(workers=1, train_cpus=2, data_cpus=100))
    assert many.bottleneck == "arithmetic of the CPUs" and many.total == pytest.approx(
        0.010 + 0.030 / 4
    )


def test_gpus_do_the_arithmetic_at_a_share_of_their_peak(model):
    place = Place(2, 16, data_cpus=64, gpu=GPUS["L4"], gbit=10, utilisation=0.5)
    step = model(place)
    exchange = 3 * 5e-5 + 2 * 0.5 * 1e6 * 4 * 8 / 10e9
    arithmetic = 2.5e12 / 2 / (30.3e12 * 0.5)  # 2.5 batches a step
    assert step.parts["arithmetic of the GPUs"] == pytest.approx(arithmetic + exchange)
    assert step.parts["work of the host at each step"] == pytest.approx(0.004 + exchange)
    assert step.parts["reading"] == pytest.approx(20e6 * 8 / 10e9)
    assert model(place, 10**9).total > step.total  # more to exchange


def test_the_slowest_part_is_what_a_run_waits_for(model):
    slow = model(Place(1, 8, data_cpus=8, gpu=GPUS["H100"], gbit=0.1))
    assert slow.bottleneck == "reading"
