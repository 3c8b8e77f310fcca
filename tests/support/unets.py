"""What tests of the U-Net compare."""

import torch

TEXT_DIM = 24
SMALL_UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "crosswkv_head_dim": 8,
    "crosswkv_decay_rank": 4,
    "crosswkv_in_context_lr_rank": 4,
    "crosswkv_gate_rank": 4,
    "crosswkv_value_rank": 4,
}


def unet_inputs(batch_size=2, size=8, length=5):
    """Sample, timestep and text for U-Nets of `make_unet`."""
    timestep = torch.tensor([10, 700, 3, 999][:batch_size])
    return torch.randn(batch_size, 1, size, size), timestep, torch.randn(batch_size, length, TEXT_DIM)


def relative_error(x, y):
    return ((x.float() - y.float()).norm() / y.float().norm()).item()


def read(unet, inputs, state, **kwargs):
    """The prediction with a prompt state in the place of the text."""
    cross_attention_kwargs = {"prompt_state": state, **kwargs.pop("cross_attention_kwargs", {})}
    return unet(inputs[0], inputs[1], None, cross_attention_kwargs=cross_attention_kwargs, **kwargs).sample


def assert_same_model(unet, inputs, expected, state=None, tolerance=1e-6):
    """The U-Net predicts what is expected, from text, from a given prompt state, and from one of its own."""
    with torch.no_grad():
        assert relative_error(unet(*inputs).sample, expected) <= tolerance
        if state is None:
            return
        assert relative_error(read(unet, inputs, state), expected) <= tolerance + 1e-6
        own = unet.encode_prompt(inputs[2])
        assert relative_error(read(unet, inputs, own), expected) <= tolerance + 1e-6
