import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusers_crosswkv import CrossWKV, DIR7UNet2DConditionModel
from diffusers_crosswkv.alignment.arms import MAIN_ARMS, TOLERANCE, count_parameters
from diffusers_crosswkv.alignment.arms import build as build_models
from diffusers_crosswkv.alignment.suite import ARMS, PRESETS, SMALL, ablations, jobs_of
from diffusers_crosswkv.alignment.text_encoder import untrained_text_encoder


def build(name, seed=0):
    return build_models(ARMS[name], SMALL, seed, untrained_text_encoder(SMALL))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_arms_train_equally_many_parameters(preset):
    counts = {name: count_parameters(arm, preset) for name, arm in MAIN_ARMS.items()}
    assert max(counts.values()) <= (1 + TOLERANCE) * min(counts.values()), counts
    for name, arm in ablations(preset).items():
        assert count_parameters(arm, preset) == pytest.approx(counts[name.split(",")[0]], rel=TOLERANCE), name


def test_small_is_well_under_a_million():
    assert build("state").num_parameters() < 700_000


def test_what_is_built():
    softmax, state = build("softmax"), build("state")
    assert type(softmax.unet) is UNet2DConditionModel
    assert isinstance(state.unet, DIR7UNet2DConditionModel)
    assert state.unet.config.crosswkv_fusion == "state"
    assert state.unet.config.in_channels == state.unet.config.out_channels == 3 * SMALL.patch**2
    assert sum(p.numel() for p in state.unet.parameters()) == count_parameters(ARMS["state"], SMALL)
    again, other = build("state"), build("state", seed=1)
    pairs = list(zip(*(models.unet.parameters() for models in (state, again, other)), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_ablations_leave_out_what_they_name():
    layer = build("state, no decay LoRA").unet.mid_block
    assert layer is None
    for name, missing in (
        ("no decay LoRA", "decay_lora.reduce"),
        ("no rate LoRA", "in_context_lr_lora.reduce"),
        ("no value LoRA", "value_lora"),
    ):
        parts = dict(build(f"state, {name}").unet.named_parameters())
        whole = dict(build("state").unet.named_parameters())
        assert any(f"crosswkv.{missing}" in key or f"crosswkv.text_writer.{missing}" in key for key in whole)
        assert not any(f"crosswkv.{missing}" in key or f"crosswkv.text_writer.{missing}" in key for key in parts)


def test_ablations_of_what_is_not_the_papers():
    names = ("", ", no group norm", ", group norm of the paper", ", gate of the paper", ", forward only", ", SiLU")
    attentions = [
        build(f"state{name}").unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.crosswkv for name in names
    ]
    assert [x.norm.bias is None for x in attentions] == [False, True, False, False, False, False]
    assert [x.norm.eps for x in attentions] == [1, 1, 16e-5, 1, 1, 1]
    assert [x.gate_lora is None for x in attentions] == [True, True, True, False, True, True]
    assert [x.backward_heads for x in attentions] == [1, 1, 1, 1, 0, 1]
    assert [x.feature_map for x in attentions] == ["quadratic"] * 5 + ["silu"]
    assert {(x.num_heads, x.value_dim) for x in attentions} == {(3, 48)}


def test_the_arm_has_the_defaults_of_the_layer():
    layer = build("state").unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.crosswkv
    default = CrossWKV(layer.hidden_size, layer.cross_attention_dim, layer.head_dim)
    for name in ("feature_map", "gate_lora", "backward_heads"):
        assert getattr(layer, name) == getattr(default, name)
    assert (layer.norm.eps, layer.norm.bias is None) == (default.norm.eps, default.norm.bias is None)


def test_arms_start_alike_wherever_shapes_agree():
    weights, others = (build(name).unet.state_dict() for name in ("softmax", "state"))
    common = [name for name, x in weights.items() if name in others and x.shape == others[name].shape]
    assert len(common) > 0.7 * len(weights)
    assert all(torch.equal(weights[name], others[name]) for name in common)


def test_the_prefix_is_the_arms():
    assert build("state").text_prefix == "<|endoftext|>"
    assert build("state, no endoftext").text_prefix == ""


def test_jobs():
    jobs = jobs_of(SMALL, None, None)
    assert len(jobs) == len(set(jobs))
    assert [job for job in jobs if job[0] == "softmax"] == [("softmax", seed) for seed in SMALL.seeds]
    assert jobs_of(SMALL, ["state"], [1]) == [("state", 1)]
    with pytest.raises(ValueError, match=r"must be of \(0, 1, 2\), got \[7\]"):
        jobs_of(SMALL, None, [7])
