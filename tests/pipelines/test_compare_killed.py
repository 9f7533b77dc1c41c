"""A comparison whose driver is killed between rounds: finished rounds are neither lost nor run
again, and every arm has what its fits reach undisturbed in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference import reference
from runs import Job, checkpoints_of

from pipelines import cli
from pipelines.running.checkpoints import newest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def recipe(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four rounds (seeds) of six fits each."""
    path = tmp_path_factory.mktemp("compare") / "recipe.yaml"
    path.write_text(f"""
name: killed
target: image
shots: 4
data_root: {tiny_data}
modalities:
  image: {{kind: image, train: image-train-*.tar, test: image-test-*.tar, size: 12}}
  text: {{kind: text, train: text-train-*.tar, vocab: 64}}
model: {{width: 16, depth: 1, heads: 2}}
train: {{steps: 40, batch_size: 8, validate_every: 10, workers: 2, device: cpu}}
compare: {{grid: {{lr: [1e-3, 1e-2]}}}}
seeds: [3, 4, 5, 6]
""")
    return str(path)


def outcomes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("round*.*")}


def test_finished_rounds_are_neither_lost_nor_run_again(ray_cluster, recipe, tmp_path, capfd):
    out, log = tmp_path / "out", tmp_path / "log"
    job = Job("compare", recipe, "--out", str(out), log=log)
    job.wait_until(lambda: checkpoints_of(out))
    job.kill()
    kept, troubles = newest(out)
    assert 1 <= kept.at < 4 and not troubles and not (out / "compare.json").exists()
    before = outcomes(kept.path)
    assert len(before) == 2 * 6 * kept.at
    # One worker less: the rounds that are left do not depend on how many share them.
    assert cli.main(["compare", recipe, "train.workers=1", "--out", str(out), "--resume"]) == 0
    assert f"Going on from round {kept.at}." in capfd.readouterr().err
    last = newest(out)[0]
    after = outcomes(last.path)
    assert last.at == 4 and len(after) == 2 * 6 * 4
    assert {name: after[name] for name in before} == before
    found = json.loads((out / "compare.json").read_text())
    for arm, facts in found["arms"].items():
        point = {"lr": facts["chosen"]["lr"]}
        calm = [reference(recipe, arm=arm, seed=seed, point=point) for seed in found["seeds"]]
        assert facts["test_accuracy"] == pytest.approx([fit.test_accuracy for fit in calm]), arm
        assert facts["val_accuracy"] == pytest.approx([fit.val_accuracy for fit in calm]), arm


def test_rounds_with_other_settings_do_not_mix(recipe, tmp_path, capfd):
    from pipelines.running.data import open_data, resolved
    from pipelines.running.folder import opened
    from uml_core import recipe as recipes

    out = tmp_path / "out"
    loaded = recipes.load(recipe)
    data = open_data(loaded)
    with opened(out, resolved(loaded, data), data):
        pass
    code = cli.main(["compare", recipe, "train.steps=41", "--out", str(out), "--resume"])
    assert code == 2 and "train.steps was 40 and is 41" in capfd.readouterr().err
