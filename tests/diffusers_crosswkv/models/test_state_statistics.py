"""Size and rank of states, and that what is observed is what the image reads."""

import pytest
import torch
from crosswkv_kernels import wkv7_reference
from diffusers import UNet2DConditionModel
from unets import unet_inputs

from diffusers_crosswkv.models.state_statistics import observe_states, state_statistics


def test_matrices_whose_figures_are_known():
    identity = 3 * torch.eye(4)[None, None]
    found = state_statistics(identity)
    assert found.rms == pytest.approx(1.5)
    assert found.max_abs == 3
    assert found.stable_rank == found.min_stable_rank == pytest.approx(4)
    one_direction = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0, 4.0]))[None, None]
    assert state_statistics(one_direction).stable_rank == pytest.approx(1)
    assert state_statistics(one_direction).rms == pytest.approx((5 * 25 / 6) ** 0.5)
    diagonal = torch.diag(torch.tensor([2.0, 1.0, 1.0]))[None, None]
    assert state_statistics(diagonal).stable_rank == pytest.approx(6 / 4)


def test_heads_and_batch():
    states = torch.zeros(2, 2, 3, 3)
    states[0, 0] = torch.eye(3)
    states[1, 1, 0, 0] = 6
    found = state_statistics(states)
    assert found.stable_rank == pytest.approx((3 + 1) / 2)  # those that hold nothing have no rank
    assert found.min_stable_rank == pytest.approx(1)
    assert found.max_rms == pytest.approx(2)
    assert found.rms == pytest.approx((2 + 3**-0.5) / 4)
    assert state_statistics(torch.zeros(1, 2, 3, 3)).stable_rank == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite(value):
    states = torch.ones(1, 1, 2, 2)
    states[0, 0, 1, 0] = value
    found = state_statistics(states)
    assert not found.finite
    assert found.max_abs != found.max_abs


def test_large_numbers_of_half_precision_do_not_overflow():
    found = state_statistics(torch.full((1, 1, 4, 4), 60000.0, dtype=torch.float16))
    assert found.rms == pytest.approx(60000, rel=1e-2)


@pytest.mark.parametrize("shape", [(2, 3, 3), (0, 1, 2, 2)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[B, H, V, K\]"):
        state_statistics(torch.zeros(shape))


@torch.no_grad()
def test_state_fusion_reads_the_prompts_states(make_unet):
    unet, inputs = make_unet(crosswkv_fusion="state"), unet_inputs()
    plain = unet(*inputs).sample
    with observe_states(unet) as states:
        assert torch.equal(unet(*inputs).sample, plain)
    names = [name.removesuffix(".crosswkv") for name, _ in unet.named_modules() if name.endswith(".crosswkv")]
    assert sorted(states) == sorted(names)
    for observed, expected in zip(states.values(), unet.encode_prompt(inputs[2]).states, strict=True):
        assert torch.equal(observed, expected)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["prefix", "paper"])
def test_the_state_behind_the_image(make_unet, fusion):
    """Against the reference, from what each layer's image writes."""
    unet, inputs, writes = make_unet(crosswkv_fusion=fusion), unet_inputs(), {}
    for name, module in unet.named_modules():
        if name.endswith(".image_writer"):
            layer = name.removesuffix(".crosswkv.image_writer")
            module.register_forward_hook(lambda module, args, write, layer=layer: writes.update({layer: write}))
    with observe_states(unet) as states:
        unet(*inputs)
    starts = [None] * len(states) if fusion == "paper" else unet.encode_prompt(inputs[2]).states
    for (name, observed), start in zip(states.items(), starts, strict=True):
        write = writes[name]
        _, expected = wkv7_reference(torch.zeros_like(write.k), *write, initial_state=start, output_final_state=True)
        torch.testing.assert_close(observed, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_observed_afterwards(make_unet):
    unet = make_unet()
    with pytest.raises(RuntimeError, match="stop"), observe_states(unet) as states:
        raise RuntimeError("stop")
    with torch.no_grad():
        unet(*unet_inputs())
    assert states == {}


def test_softmax_has_no_states():
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    with pytest.raises(ValueError, match="UNet2DConditionModel has none"), observe_states(unet):
        pass
