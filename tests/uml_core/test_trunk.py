import dataclasses

import pytest
import torch
from torch import nn

from uml_core.errors import UserError
from uml_core.specs import ModelSpec
from uml_core.trunk import Block, Trunk, sinusoids

SPEC = ModelSpec(width=12, depth=2, heads=3, max_positions=16)


def trunk(causal=True, **changes):
    torch.manual_seed(0)
    return Trunk(dataclasses.replace(SPEC, **changes), causal=causal).eval()


def padded(length):
    return torch.arange(6)[None] < torch.tensor([6, length])[:, None]


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("causal", [True, False])
def test_block_equals_torchs_encoder_layer(norm, activation, causal):
    spec = dataclasses.replace(SPEC, norm=norm, activation=activation, ff=20)
    block = Block(spec).eval()
    layer = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, activation, batch_first=True, norm_first=norm == "pre"
    ).eval()
    names = {
        "qkv": "self_attn.in_proj_",
        "out": "self_attn.out_proj.",
        "up": "linear1.",
        "down": "linear2.",
        "norm1": "norm1.",
        "norm2": "norm2.",
    }
    state = block.state_dict()
    layer.load_state_dict({names[k.split(".")[0]] + k.split(".")[1]: v for k, v in state.items()})
    x, mask = torch.randn(2, 6, 12), padded(4)
    look = nn.Transformer.generate_square_subsequent_mask(6) if causal else None
    if causal:
        ours, theirs = block(x, None, True), layer(x, src_mask=look, is_causal=True)
    else:
        ours = block(x, mask[:, None, None, :], False)
        theirs = layer(x, src_key_padding_mask=~mask)
        ours, theirs = ours[mask], theirs[mask]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["off", "learned", "sinusoidal"])
def test_causal_trunk_never_looks_ahead(positions):
    h, x = trunk(positions=positions), torch.randn(3, 6, 12)
    before = h(x, None)
    for t in range(5):
        changed = x.clone()
        changed[:, t + 1 :] = torch.randn(3, 5 - t, 12)
        after = h(changed, None)
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_the_supervised_trunk_sees_every_valid_position_and_no_padding():
    h, x, mask = trunk(causal=False), torch.randn(2, 6, 12), padded(4)
    before = h(x, mask)
    changed = x.clone()
    changed[1, 4:] = 100.0  # padding
    torch.testing.assert_close(h(changed, mask)[mask], before[mask])
    changed[:, 3] = torch.randn(2, 12)  # valid, after position 0
    assert not torch.allclose(h(changed, mask)[:, 0], before[:, 0])


@pytest.mark.parametrize("causal", [True, False])
def test_valid_outputs_do_not_depend_on_batch_mates(causal):
    h, x, mask = trunk(causal, positions="learned"), torch.randn(2, 6, 12), padded(4)
    together = h(x, mask)
    torch.testing.assert_close(together[1:, :4], h(x[1:, :4], None))
    torch.testing.assert_close(together[:1], h(x[:1], None))


@pytest.mark.parametrize("causal", [True, False])
def test_one_position_takes_the_shortcut_and_equals_attention(causal):
    block, x = Block(SPEC).eval(), torch.randn(5, 1, 12)
    short = block(x, None, causal)
    # A second, masked position forces the general path.
    two = torch.cat([x, torch.randn(5, 1, 12)], 1)
    mask = torch.tensor([True, False]).expand(5, 2)
    torch.testing.assert_close(short, block(two, mask[:, None, None, :], False)[:, :1])


def test_options_exist_and_are_counted_once():
    def parameters(**changes):
        return sum(p.numel() for p in trunk(**changes).parameters())

    block = 12 * 36 + 36 + 12 * 12 + 12 + 12 * 48 + 48 + 48 * 12 + 12 + 4 * 12
    assert parameters() == 2 * block + 24  # and the final norm
    assert parameters(norm="post") == 2 * block
    assert parameters(depth=0) == 0
    assert parameters(input_projection=True) == 2 * block + 24 + 144
    assert parameters(positions="learned") == 2 * block + 24 + 16 * 12
    assert parameters(positions="sinusoidal") == 2 * block + 24


def test_paper_sized_trunk_has_the_papers_number_of_weights():
    """About 0.87 M at d = 40 (paper section 6: Conv1d without bias, 5 layers, ff 2048)."""
    spec = ModelSpec(40, 5, 5, 2048, norm="post", activation="relu", input_projection=True)
    layer = nn.TransformerEncoderLayer(40, 5, 2048)
    ours = sum(p.numel() for p in Trunk(spec, causal=True).parameters())
    assert ours == 5 * sum(p.numel() for p in layer.parameters()) + 40 * 40


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_sequences_longer_than_the_position_table_are_an_error(positions):
    h = trunk(positions=positions)
    assert h(torch.randn(1, 16, 12), None).shape == (1, 16, 12)
    with pytest.raises(UserError, match=r"17 positions.*16.*max_positions"):
        h(torch.randn(1, 17, 12), None)
    assert trunk()(torch.randn(1, 17, 12), None).shape == (1, 17, 12)


def test_without_positions_the_trunk_does_not_see_the_order():
    x, order = torch.randn(1, 6, 12), torch.randperm(6)
    h = trunk(causal=False)
    torch.testing.assert_close(h(x[:, order], None), h(x, None)[:, order])
    h = trunk(causal=False, positions="sinusoidal")
    assert not torch.allclose(h(x[:, order], None), h(x, None)[:, order], atol=1e-3)


def test_sinusoids_by_hand():
    table = sinusoids(50, 5)
    assert table.shape == (50, 5)
    t = torch.arange(50.0)
    torch.testing.assert_close(table[:, 0], t.sin())
    torch.testing.assert_close(table[:, 1], t.cos())
    torch.testing.assert_close(table[:, 2], (t / 10_000 ** (2 / 5)).sin())


def test_dropout_acts_in_training_only():
    h, x = trunk(dropout=0.5), torch.randn(2, 6, 12)
    torch.testing.assert_close(h(x, None), h(x, None))
    h.train()
    assert not torch.allclose(h(x, None), h(x, None))
