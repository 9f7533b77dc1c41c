import dataclasses
import json
import logging
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from uml_core.errors import UserError
from uml_core.language_trunk import adopt, check_weights, description, load_trunk
from uml_core.recipe import from_dict, load
from uml_core.specs import ModelSpec
from uml_core.trunk import Trunk

logging.getLogger("transformers").setLevel(logging.ERROR)

SIZES = {
    "bert": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
        "vocab_size": 30,
    },
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 20, "vocab_size": 30},
}
CLASSES = {
    "bert": (transformers.BertConfig, transformers.BertModel, transformers.BertForMaskedLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2Model, transformers.GPT2LMHeadModel),
}


def language_model(family, *, head=False, **changes):
    """A small model whose every weight, norms and biases too, is drawn at random."""
    config, plain, headed = CLASSES[family]
    torch.manual_seed(0)
    model = (headed if head else plain)(config(**{**SIZES[family], **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """family -> (folder as save_pretrained leaves it, the model)."""
    out = {}
    for family in CLASSES:
        folder = tmp_path_factory.mktemp(family)
        model = language_model(family)
        model.save_pretrained(folder)
        out[family] = folder, model
    return out


def trunk_of(folder, *, causal, given=(), **fields):
    fields = {"positions": "learned", **fields}
    spec = adopt(ModelSpec(trunk_init=str(folder), **fields), given)
    torch.manual_seed(1)
    trunk = Trunk(spec, causal=causal).eval()
    load_trunk(trunk, spec)
    return trunk


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def hidden(model, x, look):
    """What transformers makes of embeddings x (B, T, D); look (B, T, T): who sees whom."""
    mask = torch.zeros(look.shape).masked_fill(~look, torch.finfo(torch.float32).min)
    return model(inputs_embeds=x, attention_mask=mask[:, None]).last_hidden_state


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_the_trunk_computes_the_hidden_states_of_transformers(saved, family, causal):
    folder, model = saved[family]
    trunk, x = trunk_of(folder, causal=causal), torch.randn(3, 11, 24)
    look = torch.ones(3, 11, 11, dtype=torch.bool)
    assert_close(trunk(x, None), hidden(model, x, look.tril() if causal else look))
    assert not torch.allclose(trunk(x, None), hidden(model, x, look if causal else look.tril()))


@torch.no_grad()
def test_each_model_in_its_own_way_of_looking_with_padding(saved):
    x, mask = torch.randn(3, 11, 24), torch.arange(11)[None] < torch.tensor([11, 4, 1])[:, None]
    for family, causal in (("bert", False), ("gpt2", True)):
        folder, model = saved[family]
        theirs = model(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
        assert_close(trunk_of(folder, causal=causal)(x, mask)[mask], theirs[mask])


@torch.no_grad()
def test_without_the_position_table_a_stem_brings_positions_of_its_own(saved):
    x, every = torch.randn(2, 7, 24), torch.ones(2, 7, 7, dtype=torch.bool)
    folder, bert = saved["bert"]
    inner = bert.encoder(bert.embeddings.LayerNorm(x)).last_hidden_state
    assert_close(trunk_of(folder, causal=False, positions="off")(x, None), inner)
    folder, gpt2 = saved["gpt2"]
    added = trunk_of(folder, causal=False, positions="off")(x + gpt2.wpe.weight[:7], None)
    assert_close(added, hidden(gpt2, x, every))


@torch.no_grad()
def test_the_first_blocks_and_positions_alone(saved):
    folder, model = saved["gpt2"]
    x = torch.randn(2, 6, 24)
    given = {"depth": 2, "max_positions": 6}
    trunk = trunk_of(folder, causal=True, given=given, **given)
    states = model(inputs_embeds=x, output_hidden_states=True).hidden_states
    assert_close(trunk(x, None), model.ln_f(states[2]))
    with pytest.raises(UserError, match="position table"):
        trunk(torch.randn(1, 7, 24), None)


def as_head(folder, family):
    model = language_model(family, head=True)
    model.save_pretrained(folder)
    return model.base_model


def as_shards(folder, family):
    model = language_model(family)
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return model


def with_old_names(folder, family):
    model = language_model(family)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {}
    for name, value in load_file(path).items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        tensors[f"bert.{name}"] = value
    save_file(tensors, path)
    return model


def in_half(folder, family):
    model = language_model(family).to(torch.bfloat16)
    model.save_pretrained(folder)
    return model.float()


@pytest.mark.parametrize(
    ("write", "family"),
    [
        (as_head, "bert"),
        (as_head, "gpt2"),
        (as_shards, "bert"),
        (as_shards, "gpt2"),
        (with_old_names, "bert"),
        (in_half, "gpt2"),
    ],
)
@torch.no_grad()
def test_ways_a_checkpoint_is_written(tmp_path, write, family):
    model = write(tmp_path, family)
    trunk, x = trunk_of(tmp_path, causal=False), torch.randn(2, 5, 24)
    assert_close(trunk(x, None), hidden(model, x, torch.ones(2, 5, 5, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu", "relu")]
)
@torch.no_grad()
def test_activations(tmp_path, theirs, ours):
    model = language_model("gpt2", activation_function=theirs, n_inner=36)
    model.save_pretrained(tmp_path)
    spec = adopt(ModelSpec(trunk_init=str(tmp_path), positions="learned"), ())
    assert (spec.activation, spec.ff) == (ours, 36)
    trunk, x = trunk_of(tmp_path, causal=True), torch.randn(2, 5, 24)
    assert_close(trunk(x, None), model(inputs_embeds=x).last_hidden_state)


def test_a_projection_before_the_blocks_stays_as_it_was(saved):
    trunk = trunk_of(saved["bert"][0], causal=False, input_projection=True)
    torch.manual_seed(1)
    fresh = torch.nn.Linear(24, 24, bias=False)
    assert torch.equal(trunk.input.weight, fresh.weight)


# ------------------------------------------------------------------------------ the recipe


def recipe(folder, **model):
    return {
        "name": "r",
        "data_root": ".",
        "target": "image",
        "modalities": {
            "image": {"kind": "image", "train": "i", "size": 16, "stem": "patches"},
            "text": {"kind": "text", "train": "t", "max_tokens": 20},
        },
        "model": {"trunk_init": str(folder), **model},
    }


def test_a_recipe_takes_its_sizes_from_the_checkpoint(saved):
    spec = from_dict(recipe(saved["bert"][0])).model
    assert (spec.width, spec.depth, spec.heads, spec.ff) == (24, 3, 4, 40)
    assert (spec.norm, spec.norm_eps, spec.input_norm) == ("post", 1e-12, True)
    assert spec.max_positions == 512  # positions: off needs no table
    spec = from_dict(recipe(saved["gpt2"][0], positions="learned", depth=1)).model
    assert (spec.width, spec.depth, spec.heads, spec.ff) == (24, 1, 4, 96)
    assert (spec.norm, spec.activation, spec.max_positions) == ("pre", "gelu_tanh", 20)


def test_a_resolved_recipe_says_the_same_again_and_outlives_the_folder(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved["gpt2"][0], copy)
    first = from_dict(recipe(copy, positions="learned"))
    assert from_dict(first.to_dict()) == first
    shutil.rmtree(copy)
    assert from_dict(first.to_dict()) == first
    with pytest.raises(UserError, match="no folder"):
        check_weights(first.model)
    with pytest.raises(UserError, match=r"model\.trunk_init: there is no folder"):
        from_dict(recipe(copy))


def test_sizes_that_disagree_are_told_together(saved):
    with pytest.raises(UserError) as caught:
        from_dict(recipe(saved["bert"][0], width=64, heads=2, depth=4, norm="pre", ff=None))
    wrong = {"width": (64, 24), "depth": (4, 3), "heads": (2, 4), "norm": ("pre", "post")}
    for said, (field, (here, there)) in zip(caught.value.problems, wrong.items(), strict=False):
        assert all(f" {fact} " in said for fact in (field, here, there)), said


def test_positions_beyond_the_checkpoints_table(saved):
    raw = recipe(saved["bert"][0], positions="learned", max_positions=30)
    with pytest.raises(UserError, match="max_positions is 30 here, but 20"):
        from_dict(raw)
    raw = recipe(saved["bert"][0], positions="learned")
    raw["modalities"]["text"].update(stem="tokens", max_tokens=21)
    with pytest.raises(UserError, match=r"text: a sample may have 21 positions.*ends at 20"):
        from_dict(raw)


def test_the_folder_is_relative_to_the_recipe_or_to_the_working_directory(
    saved, tmp_path, monkeypatch
):
    shutil.copytree(saved["bert"][0], tmp_path / "lm")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe("lm")))
    assert load(path).model.trunk_init == str(tmp_path / "lm")
    monkeypatch.chdir(saved["gpt2"][0].parent)
    over = load(path, [f"model.trunk_init={saved['gpt2'][0].name}"])
    assert over.model.trunk_init == str(saved["gpt2"][0]) and over.model.norm == "pre"


def test_a_person_reads_what_the_trunk_starts_from(saved):
    folder = saved["bert"][0]
    text = description(from_dict(recipe(folder, trunk_frozen=20)).model)
    block = 3 * (24 * 24 + 24) + 24 * 24 + 24 + 2 * 24 * 40 + 40 + 24 + 4 * 24
    assert text == (
        f"3 blocks of bert, {3 * block + 48:,} weights, from {folder}; frozen for 20 steps, "
        "then trained"
    )
    assert description(from_dict(recipe(folder, trunk_frozen=True)).model).endswith("; frozen")
    assert description(ModelSpec()) is None
    assert description(ModelSpec(trunk_frozen=True)) == "random; frozen"


# -------------------------------------------------------------------------- what is wrong


def damaged(saved, tmp_path, family="bert"):
    folder = tmp_path / "lm"
    shutil.copytree(saved[family][0], folder)
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; only bert and gpt2"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": "wide"}, r"hidden_size: .*integer"),
        ({"hidden_act": "silu"}, r"hidden_act: .*'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_config_that_cannot_be_a_trunk(saved, tmp_path, changes, told):
    folder = damaged(saved, tmp_path)
    change_config(folder, **changes)
    with pytest.raises(UserError, match=told):
        from_dict(recipe(folder))


def test_missing_and_broken_files(saved, tmp_path):
    folder = damaged(saved, tmp_path)
    spec = from_dict(recipe(folder)).model
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match="cannot be read"):
        check_weights(spec)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin, which could run code"):
        check_weights(spec)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UserError, match="beside it"):
        check_weights(spec)
    index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(UserError, match=r"gone\.safetensors cannot be read"):
        check_weights(spec)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        from_dict(recipe(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        from_dict(recipe(folder))


def test_every_missing_or_misshapen_tensor_is_told(saved, tmp_path):
    folder = damaged(saved, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.intermediate.dense.bias"]
    tensors["encoder.layer.2.output.dense.weight"] = torch.zeros(24, 39)
    tensors["embeddings.position_embeddings.weight"] = torch.zeros(19, 24)
    save_file(tensors, path)
    spec = from_dict(recipe(folder, positions="learned")).model
    with pytest.raises(UserError) as caught:
        check_weights(spec)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for part in (
        "lacks encoder.layer.1.intermediate.dense.bias",
        "encoder.layer.2.output.dense.weight makes (24, 39) of what must be (24, 40)",
        "embeddings.position_embeddings.weight makes (19, 24) of what must be (20, 24)",
    ):
        assert part in told
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"not the weights of its config\.json"):
        load_trunk(Trunk(spec, causal=False), spec)


def test_a_size_that_only_the_weights_betray(saved, tmp_path):
    folder = damaged(saved, tmp_path, "gpt2")
    change_config(folder, n_layer=4)
    spec = from_dict(recipe(folder)).model
    with pytest.raises(UserError, match=r"lacks h\.3\."):
        check_weights(spec)
    check_weights(dataclasses.replace(spec, depth=3))
    check_weights(ModelSpec())
