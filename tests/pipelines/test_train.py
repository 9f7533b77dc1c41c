"""`uml train` on a real worker group: files, equality over workers, exact resume, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import reference
from runs import consumed, losses, planned
from safetensors.numpy import load_file

from pipelines import cli
from pipelines.train import Trace
from uml_core.recipe import load


def history(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())["history"]


def pulls(history: dict[str, Any]) -> list[float]:
    """Norms and cosines of the modalities' gradients on the shared weights, in order."""
    noted = history["gradients"]
    return [v for at in noted for name in ("norm", "cosine") for v in at[name].values()]


@pytest.mark.ray
def test_two_workers_train_as_one_process_does(ray_cluster, tiny_recipe, write_recipe, tmp_path):
    path, out = write_recipe(tiny_recipe), tmp_path / "out"
    assert cli.main(["train", path, "trace=true", "--out", str(out)]) == 0
    alone = reference(path)
    assert consumed(out) == planned(path)
    np.testing.assert_allclose(losses(out), alone.losses, rtol=1e-5)
    np.testing.assert_allclose(pulls(history(out)), pulls(alone.history), rtol=1e-3, atol=1e-5)
    assert len(pulls(history(out))) == 6  # three modalities at step 0
    weights = load_file(out / "checkpoint" / "model.safetensors")
    # Of a bias before a norm the gradient is rounding alone, which Adam makes as large as any.
    head = "classifier.weight"
    np.testing.assert_allclose(weights[head], alone.weights[head].numpy(), atol=1e-4)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["target"] == "image" and metrics["steps"] == 12
    assert metrics["test_accuracy"] == alone.test_accuracy
    assert "same way as image" in (out / "report.html").read_text()
    assert len(list((out / "trace").iterdir())) == 2


@pytest.fixture
def bert_recipe(tiny_recipe, tmp_path):
    """The tiny recipe with pictures as patches through a BERT that was never trained."""
    import transformers

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=20, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_recipe["modalities"]["image"].update(stem="patches", patch=4, class_token=True)
    tiny_recipe["modalities"]["text"].update(stem="tokens")
    tiny_recipe["modalities"]["wave"].update(ratio=0)
    tiny_recipe["model"] = {"trunk_init": "bert", "positions": "learned", "trunk_frozen": True}
    return tiny_recipe


@pytest.mark.ray
def test_the_trunk_of_a_language_model_trains_a_model_of_pictures(
    ray_cluster, bert_recipe, write_recipe, tmp_path
):
    out = tmp_path / "out"
    assert cli.main(["train", write_recipe(bert_recipe), "--out", str(out)]) == 0
    ours = load_file(out / "checkpoint" / "model.safetensors")
    theirs = load_file(tmp_path / "bert" / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(ours["trunk.blocks.1.down.weight"], theirs[name])
    table = theirs["embeddings.position_embeddings.weight"]
    segment = theirs["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(ours["trunk.positions"], table + segment)
    assert ours["stems.image.positions"].shape == (1, 9 + 1, 12)
    history = json.loads((out / "metrics.json").read_text())["history"]
    assert history["losses"][-1]["image"] < history["losses"][0]["image"]
    assert load(out / "recipe.yaml").model.trunk_init == str(tmp_path / "bert")


def test_a_dry_run_says_what_the_trunk_starts_from(bert_recipe, write_recipe, tmp_path, capsys):
    bert_recipe["model"]["trunk_frozen"] = 5
    path = write_recipe(bert_recipe)
    assert cli.main(["train", path, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"2 blocks of bert, 8,536 weights, from {tmp_path / 'bert'}; frozen for 5" in said
    assert cli.main(["train", path, "model.width=64", "--out", str(tmp_path / "o")]) == 2
    assert "width is 64 here, but 12 in the checkpoint" in capsys.readouterr().err
    (tmp_path / "bert" / "model.safetensors").unlink()
    assert cli.main(["train", path, "--out", str(tmp_path / "o")]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
def test_a_learned_mix_is_the_same_for_any_number_of_workers_and_goes_on_after_a_stop(
    ray_cluster, tiny_recipe, write_recipe, tmp_path
):
    """Two workers decide as one process does; one worker goes on with what they decided."""
    for name in ("text", "wave"):
        tiny_recipe["modalities"][name]["ratio"] = "adaptive"
    path, out = write_recipe(tiny_recipe), tmp_path / "out"
    half = "train.steps=6"
    assert cli.main(["train", path, half, "--out", str(out)]) == 0
    [decided] = json.loads((out / "metrics.json").read_text())["mix"]
    [alone] = reference(path, [half]).mix
    assert decided["step"] == alone["step"] == 4
    for what in ("gain", "ratio"):
        assert decided[what] == pytest.approx(alone[what], rel=1e-3, abs=1e-4)
    assert cli.main(["train", path, "train.workers=1", "--out", str(out), "--resume"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [entry["step"] for entry in metrics["mix"]] == [4, 8] and metrics["steps"] == 12
    assert metrics["mix"][0] == decided


def test_the_trace_forgets_what_the_model_did_not_learn(tmp_path: Path):
    first = [Trace(tmp_path, (rank, 2), 0) for rank in (0, 1)]
    for step in range(3):
        for trace in first:
            trace.write(step, "image", [f"k{step}"])
    Trace(tmp_path, (0, 1), 2).write(2, "image", ["again"])
    lines = {
        path.name: [json.loads(x) for x in path.read_text().splitlines()]
        for path in (tmp_path / "trace").iterdir()
    }
    assert [x["keys"] for x in lines["rank-0.jsonl"]] == [["k0"], ["k1"], ["again"]]
    assert [x["step"] for x in lines["rank-1.jsonl"]] == [0, 1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"modalities.image.train": "image-trian-*.tar"}, "did you mean 'image-train-"),
    ({"train.stepz": 3}, "did you mean 'steps'?"),
    ({"model.width": 15}, "not divisible"),
    ({"shots": 400}, "class 'red' has 16 samples"),
    ({"modalities.text.kind": "txt"}, "did you mean 'text'?"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_exit_code_2_and_writes_nothing(
    change: dict[str, Any],
    said: str,
    tiny_recipe: dict[str, Any],
    write_recipe: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    overrides = [f"{key}={json.dumps(value)}" for key, value in change.items()]
    out = tmp_path / "out"
    code = cli.main(["train", write_recipe(tiny_recipe), *overrides, "--out", str(out)])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_every_problem_is_listed_at_once(tiny_recipe, write_recipe, tmp_path, capsys):
    tiny_recipe["train"]["stepz"] = 3
    tiny_recipe["seeds"] = []
    tiny_recipe["modalities"]["text"]["ratio"] = -1
    assert cli.main(["train", write_recipe(tiny_recipe), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("3 problems")
    assert "stepz" in said and "seeds" in said and "text.ratio" in said


def test_an_older_run_is_never_touched(tiny_recipe, write_recipe, tmp_path, capsys):
    out = tmp_path / "older"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    assert cli.main(["train", write_recipe(tiny_recipe), "--out", str(out)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["metrics.json"]


def test_a_class_index_out_of_range_names_shard_and_key(
    tiny_data, tiny_recipe, write_recipe, tmp_path, capsys
):
    import shutil

    folder = tmp_path / "fewer"
    shutil.copytree(tiny_data, folder)
    (folder / "classes.json").write_text('["red", "green"]')
    tiny_recipe["data_root"] = str(folder)
    assert cli.main(["train", write_recipe(tiny_recipe), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "label 2" in said and "image-train-000000.tar" in said and "train0002" in said


def test_a_dry_run_says_what_would_run(tiny_recipe, write_recipe, tmp_path, capsys):
    out = tmp_path / "dry"
    assert cli.main(["train", write_recipe(tiny_recipe), "--dry-run", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12 per fit" in said and "48 training samples" in said and "MiB per worker" in said
    assert not out.exists()


@pytest.mark.parametrize("free", ["ratio", "weight"])
def test_a_modality_that_is_not_used_is_not_even_opened(
    free, tiny_recipe, write_recipe, tmp_path, capsys
):
    tiny_recipe["modalities"]["wave"] |= {"train": "there-is-none-*.tar", free: 0}
    command = ["train", write_recipe(tiny_recipe), "--dry-run", "--out", str(tmp_path / "o")]
    assert cli.main(command) == 0
    assert "wave " not in capsys.readouterr().out.partition("classes ")[2]
    tiny_recipe["modalities"]["wave"][free] = 1
    assert cli.main(["train", write_recipe(tiny_recipe), *command[2:]]) == 2


def test_resuming_needs_a_folder(tiny_recipe, write_recipe, capsys):
    assert cli.main(["train", write_recipe(tiny_recipe), "--resume"]) == 2
    assert "--resume needs the --out folder" in capsys.readouterr().err
