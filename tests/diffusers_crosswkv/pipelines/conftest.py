"""Components of Stable Diffusion and SDXL, small enough to draw in a fraction of a second."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from vaes import tiny_vae

from diffusers_crosswkv import DIR7Pipeline, DIR7UNet2DConditionModel
from diffusers_crosswkv.training.text import make_text_encoder

TEXT_DIM = 32
LATENT_SIZE = 8
UNET = {
    "sample_size": LATENT_SIZE,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": TEXT_DIM,
    "attention_head_dim": 2,
}
XL_UNET = UNET | {
    "cross_attention_dim": 2 * TEXT_DIM,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + TEXT_DIM,
}


def randomized(model):
    """Every parameter away from its start, so that nothing is neutral by accident."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_unet_of(config, in_channels, crosswkv):
    if crosswkv:
        config = config | {"crosswkv_head_dim": 8, "crosswkv_gate_rank": 4}
    cls = DIR7UNet2DConditionModel if crosswkv else UNet2DConditionModel
    return randomized(cls(**config, in_channels=in_channels))


@pytest.fixture
def stable_diffusion_components(tokenizer):
    """Of `StableDiffusionPipeline` and its relatives, or of the XL ones; `control` adds a ControlNet."""

    def make(xl=False, in_channels=4, control=False, crosswkv=True):
        torch.manual_seed(0)
        config = XL_UNET if xl else UNET
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            force_upcast=False,
        )
        components = {
            "vae": randomized(vae),
            "text_encoder": randomized(make_text_encoder(tokenizer, TEXT_DIM, num_layers=2)),
            "tokenizer": tokenizer,
            "unet": make_unet_of(config, in_channels, crosswkv),
            "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        }
        if xl:
            second = CLIPTextConfig(**make_text_encoder(tokenizer, TEXT_DIM, num_layers=2).config.to_dict())
            components |= {"text_encoder_2": randomized(CLIPTextModelWithProjection(second)), "tokenizer_2": tokenizer}
        else:
            components |= {"safety_checker": None, "feature_extractor": None}
        if control:
            of_controlnet = {name: x for name, x in config.items() if name not in ("sample_size", "up_block_types")}
            controlnet = ControlNetModel(**of_controlnet, conditioning_embedding_out_channels=(8, 16))
            components["controlnet"] = randomized(controlnet)
        return components

    return make


@pytest.fixture
def make_latent_pipeline(make_pipeline):
    """With a VAE: images of 16 x 16 RGB pixels, latents of 4 x 8 x 8."""

    def make(cls=DIR7Pipeline, **config):
        pipeline = make_pipeline(**({"in_channels": 4, "out_channels": 4} | config))
        pipeline = cls(**(pipeline.components | {"vae": tiny_vae()}))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture
def left_half():
    """A mask: the left half is made anew."""
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, :8] = 255
    return PIL.Image.fromarray(mask)
