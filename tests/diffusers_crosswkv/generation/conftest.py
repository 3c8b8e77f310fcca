"""Pipelines in folders: a small DIR-7 one, and a stock Stable Diffusion one for comparison."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from diffusers_crosswkv.generation import ImageConfig, ModelConfig, RunConfig
from diffusers_crosswkv.training.text import make_text_encoder


@pytest.fixture
def pipeline_dir(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def stock_pipeline_dir(tokenizer, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4)  # fmt: skip
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=make_text_encoder(tokenizer, 24, num_layers=1),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture
def make_run(pipeline_dir, tmp_path):
    """Short runs; keywords are those of ModelConfig, ImageConfig and RunConfig together."""

    def make(*prompts, **changes):
        def taken(cls, **defaults):
            names = [name for name in cls.__dataclass_fields__ if name in changes]
            return cls(**defaults | {name: changes.pop(name) for name in names})

        model = taken(ModelConfig, model=str(pipeline_dir), device="cpu")
        image = taken(ImageConfig, num_inference_steps=2, guidance_scale=2.0)
        return RunConfig(model, prompts, image, **{"output_dir": tmp_path / "images"} | changes)

    return make
