import pytest
import torch
from diffusers.models.attention_processor import Attention

from diffusers_crosswkv import CrossWKV, CrossWKVAttnProcessor


@pytest.fixture
def attn(fusion):
    attn = Attention(query_dim=16, cross_attention_dim=24, heads=2, dim_head=8)
    attn.crosswkv = CrossWKV(16, 24, head_dim=8, fusion=fusion, own_projections=False)
    for name, (in_features, out_features, bias) in attn.crosswkv.projection_sizes().items():
        linear = torch.nn.Linear(in_features, out_features, bias=bias)
        if name == "to_out":
            attn.to_out[0] = linear
        else:
            setattr(attn, name, linear)
    attn.set_processor(CrossWKVAttnProcessor())
    return attn.eval()


@pytest.fixture
def inputs():
    return torch.randn(2, 6, 16), torch.randn(2, 5, 24)


def test_it_is_the_layer_alone(attn, fusion, inputs):
    alone = CrossWKV(16, 24, head_dim=8, fusion=fusion)
    weights = {name.removeprefix("crosswkv."): x for name, x in attn.state_dict().items()}
    alone.load_state_dict(weights)
    assert torch.equal(attn(*inputs), alone(*inputs))


def test_masks_additive_and_boolean(attn, inputs):
    hidden_states, text = inputs
    keep = torch.tensor([[1, 1, 1, 0, 0]] * 2).bool()
    deleted = attn(hidden_states, text[:, :3])
    for mask in (keep, keep[:, None], (1 - keep[:, None].float()) * -10000.0, keep.long()):
        torch.testing.assert_close(attn(hidden_states, text, attention_mask=mask), deleted, rtol=0, atol=1e-5)
    assert not torch.allclose(attn(hidden_states, text), deleted, atol=1e-2)


def test_pictures_residuals_and_scale(attn, inputs):
    hidden_states, text = inputs
    expected = attn(*inputs)
    picture = hidden_states.transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(attn(picture, text), expected.transpose(1, 2).unflatten(2, (2, 3)))
    attn.residual_connection, attn.rescale_output_factor = True, 2.0
    torch.testing.assert_close(attn(*inputs), (expected + hidden_states) / 2)


def test_self_attention_and_wrong_text_are_refused(attn, inputs):
    hidden_states, text = inputs
    with pytest.raises(ValueError, match=r"needs `encoder_hidden_states`, text tokens .* got NoneType"):
        attn(hidden_states)
    with pytest.raises(ValueError, match=r"D_q = cross_attention_dim = 24, got \[2, 5, 23\]"):
        attn(hidden_states, text[..., 1:])
