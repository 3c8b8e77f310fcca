"""IP-Adapters: the text goes through CrossWKV, image prompts through the adapters' own attention."""

import pytest
import torch
import torch.nn.functional as F
from crosswkv_kernels import final_state
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from unets import TEXT_DIM, read, relative_error, unet_inputs

from diffusers_crosswkv import CrossWKVAttnProcessor
from diffusers_crosswkv.models.attention_processor import FirstValues, PreparedText
from diffusers_crosswkv.models.image_attention import CrossWKVIPAdapterAttnProcessor

EMBED_DIM = 12  # of the image encoder
TOKENS = 4


def ip_adapter(unet, seed=1):
    """Weights of an IP-Adapter in the form in which they are published."""
    torch.manual_seed(seed)
    layers = {}
    cross = [attn for name, attn in unet.named_modules() if name.endswith("attn2")]
    by_name = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    assert len(cross) == len(by_name)
    for i, name in enumerate(by_name):
        width = unet.get_submodule(name.removesuffix(".processor")).query_dim
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * i + 1}.{part}.weight"] = 0.3 * torch.randn(width, TEXT_DIM)
    projection = {
        "proj.weight": 0.3 * torch.randn(TOKENS * TEXT_DIM, EMBED_DIM),
        "proj.bias": torch.zeros(TOKENS * TEXT_DIM),
        "norm.weight": torch.ones(TEXT_DIM),
        "norm.bias": torch.zeros(TEXT_DIM),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def pipeline_of(unet):
    return StableDiffusionPipeline(None, None, None, unet, None, None, None, requires_safety_checker=False)


def images(count=1, adapters=1):
    torch.manual_seed(3)
    return {"added_cond_kwargs": {"image_embeds": [torch.randn(2, count, EMBED_DIM) for _ in range(adapters)]}}


@pytest.fixture
def inputs():
    return unet_inputs()


@torch.no_grad()
def test_load_scale_unload(make_unet, state_fusion, inputs):
    unet = make_unet(crosswkv_fusion=state_fusion)
    expected, state = unet(*inputs).sample, unet.encode_prompt(inputs[2])
    keys = list(unet.state_dict())
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    assert all(isinstance(attn.processor, IPAdapterAttnProcessor2_0) for attn in unet._crosswkv_attentions)
    seen = unet(*inputs, **images()).sample
    assert relative_error(seen, expected) > 0.05
    assert relative_error(read(unet, inputs, state, **images()), seen) < 1e-5
    assert relative_error(read(unet, inputs, unet.encode_prompt(inputs[2]), **images()), seen) < 1e-5

    pipeline = pipeline_of(unet)
    pipeline.set_ip_adapter_scale(0.0)
    assert relative_error(unet(*inputs, **images()).sample, expected) < 1e-6
    pipeline.set_ip_adapter_scale({"up": {"block_1": [0.0, 1.0]}})
    style = unet(*inputs, **images()).sample
    assert relative_error(style, expected) > 1e-3
    assert relative_error(style, seen) > 1e-3
    unet.set_attn_processor(unet.attn_processors)
    assert torch.equal(unet(*inputs, **images()).sample, style)
    pipeline.unload_ip_adapter()
    assert all(type(attn.processor) is CrossWKVAttnProcessor for attn in unet._crosswkv_attentions)
    assert list(unet.state_dict()) == keys
    assert torch.equal(unet(*inputs).sample, expected)


@torch.no_grad()
def test_the_image_prompt_is_attended_to_beside_the_text(make_unet):
    """One layer against the definition: softmax attention with the layer's query, added before `to_out`."""
    attn = make_unet()._crosswkv_attentions[0]
    stock = IPAdapterAttnProcessor2_0(16, TEXT_DIM, num_tokens=(TOKENS,), scale=0.7)
    hidden_states, text = torch.randn(2, 6, 16), torch.randn(2, 5, TEXT_DIM)
    tokens = torch.randn(2, 1, TOKENS, TEXT_DIM)
    prepared = prepared_text(attn, text, tokens)
    plain = attn(hidden_states, prepared)
    attn.set_processor(stock)
    query, key, value = attn.to_q(hidden_states), stock.to_k_ip[0](tokens[:, 0]), stock.to_v_ip[0](tokens[:, 0])
    heads = [x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (query, key, value)]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 8**0.5).softmax(-1)
    looked = (weights @ heads[2]).transpose(1, 2).flatten(2)
    expected = plain + F.linear(0.7 * looked, attn.to_out[0].weight)
    torch.testing.assert_close(attn(hidden_states, prepared), expected)
    top = torch.tensor([[[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]])  # of 2 x 3 image tokens
    masked = attn(hidden_states, prepared, ip_adapter_masks=[top])
    torch.testing.assert_close(masked, torch.cat((expected[:, :3], plain[:, 3:]), dim=1))


@torch.no_grad()
def test_slicing_keeps_the_adapter(make_unet, inputs):
    unet = make_unet()
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    expected = unet(*inputs, **images()).sample
    unet.set_attention_slice(1)
    unet.fuse_qkv_projections()
    unet.unfuse_qkv_projections()
    assert relative_error(unet(*inputs, **images()).sample, expected) < 1e-5


def prepared_text(attn, text, tokens):
    write, _ = attn.crosswkv.write_text(attn, text, torch.cat((torch.zeros_like(text[:, :1]), text[:, :-1]), 1))
    return PreparedText((final_state(write),), (), FirstValues(), (tokens,))


@torch.no_grad()
def test_masks_and_several_adapters(make_unet, inputs):
    unet = make_unet()
    unet._load_ip_adapter_weights([ip_adapter(unet), ip_adapter(unet, seed=2)])
    added = images(count=2, adapters=2)
    everywhere = [torch.ones(1, 2, 8, 8)] * 2
    nowhere = [torch.zeros(1, 2, 8, 8)] * 2
    pipeline_of(unet).set_ip_adapter_scale([[0.5, 0.5], 1.0])
    with pytest.raises(ValueError, match="A scale per image prompt needs `ip_adapter_masks`"):
        unet(*inputs, **added)
    masked = unet(*inputs, **added, cross_attention_kwargs={"ip_adapter_masks": everywhere}).sample
    without = unet(*inputs, **added, cross_attention_kwargs={"ip_adapter_masks": nowhere}).sample
    assert relative_error(masked, without) > 0.05
    pipeline_of(unet).set_ip_adapter_scale([0.0, 0.0])
    assert relative_error(unet(*inputs, **added).sample, without) < 1e-5
    for masks, message in (
        (everywhere[:1], "one entry per IP-Adapter, got 1 for 2 adapters"),
        ([torch.ones(1, 3, 8, 8)] * 2, r"must be \[1, 2 image prompts, height, width\], got \[1, 3, 8, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            unet(*inputs, **added, cross_attention_kwargs={"ip_adapter_masks": masks})


def test_the_first_processors_of_ip_adapters_work_too(make_unet):
    attn = make_unet()._crosswkv_attentions[0]
    stock = IPAdapterAttnProcessor(16, TEXT_DIM)
    attn.set_processor(stock)
    assert isinstance(attn.processor, CrossWKVIPAdapterAttnProcessor)
    assert attn.processor.to_k_ip is stock.to_k_ip
    attn.set_processor(AttnProcessor2_0())
    assert type(attn.processor) is CrossWKVAttnProcessor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crosswkv_fusion": "paper"}, "needs `crosswkv_fusion` 'state' or 'prefix', got 'paper'"),
        ({"crosswkv_value_dim": 64}, "`crosswkv_value_dim` None or 16, got 64, and 2 heads"),
    ],
)
def test_where_it_cannot_work(make_unet, config, message):
    unet = make_unet(**config)
    with pytest.raises(ValueError, match=message):
        unet._load_ip_adapter_weights([ip_adapter(unet)])


def test_missing_image_prompts_are_named(make_unet, inputs):
    unet = make_unet()
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    with pytest.raises(ValueError, match="must hold `image_embeds`, one tensor per adapter"):
        unet(*inputs)
