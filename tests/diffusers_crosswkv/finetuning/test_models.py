"""What training starts from, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from diffusers_crosswkv import DIR7UNet2DConditionModel
from diffusers_crosswkv.finetuning.config import ModelSettings
from diffusers_crosswkv.finetuning.models import PipelineBase, ScratchBase

CAPTIONS = ["a red house", "a blue house"] * 10


def from_pipeline(seed=0, **settings):
    base = PipelineBase(ModelSettings(**settings), seed)
    return base, base.start(lambda: pytest.fail("no captions are needed"), base.resolution, seed)


def from_scratch(channels=3, resolution=16, seed=0, **settings):
    base = ScratchBase(ModelSettings(from_scratch="dir7_tiny", **settings), channels)
    return base, base.start(lambda: CAPTIONS, resolution, seed)


def test_a_pipeline_of_ours(pipeline_dir):
    base, start = from_pipeline(model=pipeline_dir)
    assert (base.channels, base.multiple, base.resolution) == (1, 2, 8)
    assert (start.base_model, start.converted) == (pipeline_dir, False)
    assert isinstance(start.models.scheduler, DDPMScheduler)
    assert isinstance(start.sampler, DPMSolverMultistepScheduler) and start.sampler.config.thresholding
    assert start.models.text_prefix == "<|endoftext|>"
    assert from_pipeline(model=pipeline_dir, prepend_endoftext=False)[1].models.text_prefix == ""
    assert start.pipeline().unet is start.models.unet


def test_stable_diffusion_is_converted(stock_dir):
    base, start = from_pipeline(model=stock_dir)
    assert (base.channels, base.multiple, base.resolution) == (3, 4, 16)
    assert start.converted
    assert isinstance(start.models.unet, DIR7UNet2DConditionModel)
    assert start.models.text_prefix == ""  # it has not learned it
    assert isinstance(start.sampler, PNDMScheduler)
    assert start.models.scheduler.config.prediction_type == start.sampler.config.prediction_type == "epsilon"
    assert torch.equal(start.models.scheduler.alphas_cumprod, start.sampler.alphas_cumprod)


def test_a_conversion_is_repeated(stock_dir):
    one, again, other = (from_pipeline(model=stock_dir, seed=seed)[1].models.unet.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_another_target(stock_dir):
    start = from_pipeline(model=stock_dir, prediction_type="v_prediction", zero_terminal_snr=True)[1]
    for scheduler in (start.models.scheduler, start.sampler):
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.alphas_cumprod[-1] < 1e-6
        assert scheduler.config.timestep_spacing == "trailing"
    assert isinstance(start.sampler, DDIMScheduler)
    flow = from_pipeline(model=stock_dir, prediction_type="flow")[1]
    assert isinstance(flow.models.scheduler, FlowMatchEulerDiscreteScheduler)
    with pytest.raises(ValueError, match="this pipeline predicts epsilon"):
        from_pipeline(model=stock_dir, zero_terminal_snr=True)


def test_from_scratch_in_pixels():
    base, start = from_scratch(resolution=12)
    unet = start.models.unet
    assert (unet.config.in_channels, unet.config.sample_size, base.multiple) == (3, 12, 2)
    assert unet.config.cross_attention_dim == start.models.text_encoder.config.hidden_size == 64
    assert start.models.tokenizer.tokenize("house") == ["house</w>"]
    again, other = (from_scratch(seed=seed)[1].models.unet.conv_in.weight for seed in (0, 1))
    assert torch.equal(unet.conv_in.weight, again) and not torch.equal(again, other)
    assert start.sampler.config.thresholding
    assert from_scratch(fusion="prefix")[1].models.unet.config.crosswkv_fusion == "prefix"


def test_from_scratch_with_the_parts_of_a_pipeline(stock_dir):
    base, start = from_scratch(vae=stock_dir, text_encoder=stock_dir)
    assert (base.channels, base.multiple) == (3, 4)
    unet = start.models.unet.config
    assert (unet.in_channels, unet.sample_size, unet.cross_attention_dim) == (4, 8, 24)
    assert start.models.vae is not None
    assert not start.sampler.config.thresholding
    assert from_scratch(vae=f"{stock_dir}/vae")[1].models.vae.config.latent_channels == 4
    parts = from_scratch(vae=stock_dir, text_encoder=stock_dir, prediction_type="flow")[1]
    assert parts.models.scheduler is parts.sampler


def test_pipelines_that_cannot_be_trained(pipeline_dir, stock_dir):
    def with_index(folder, **changes):
        path = Path(folder, "model_index.json")
        index = json.loads(path.read_text())
        path.write_text(json.dumps({**index, **changes}))
        return ModelSettings(model=folder)

    with pytest.raises(ValueError, match="has two text encoders"):
        PipelineBase(with_index(pipeline_dir, text_encoder_2=["transformers", "CLIPTextModel"]), 0)
    with pytest.raises(ValueError, match="must be a pipeline with a U-Net"):
        PipelineBase(with_index(stock_dir, unet=[None, None]), 0)
    with pytest.raises(ValueError, match="has no tokenizer"):
        PipelineBase(with_index(stock_dir, unet=["diffusers", "UNet2DConditionModel"], tokenizer=[None, None]), 0)


def test_a_sampler_that_can_draw_with_the_target(stock_dir):
    """Stable Diffusion's own cannot from predicted images."""
    sampler = from_pipeline(model=stock_dir, prediction_type="sample")[1].sampler
    assert isinstance(sampler, DPMSolverMultistepScheduler)
    assert sampler.config.prediction_type == "sample"
    assert isinstance(from_pipeline(model=stock_dir, prediction_type="v_prediction")[1].sampler, PNDMScheduler)


def test_pixels_keep_their_noise(make_pipeline, tmp_path):
    make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "flow")
    start = from_pipeline(model=str(tmp_path / "flow"), prediction_type="v_prediction")[1]
    assert start.models.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert start.sampler.config.thresholding


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 5}, "reads 1 channels, got 5: one for inpainting"),
        ({"num_class_embeds": 3}, "reads a text alone, got `num_class_embeds` 3"),
        ({"time_cond_proj_dim": 8}, "reads a text alone, got `time_cond_proj_dim` 8"),
    ],
)
def test_unets_that_need_more_than_a_text(make_pipeline, tmp_path, config, message):
    make_pipeline(**config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        PipelineBase(ModelSettings(model=str(tmp_path / "other")), 0)


def test_a_fusion_is_kept(pipeline_dir):
    assert from_pipeline(model=pipeline_dir, fusion="state")[1].models.unet.config.crosswkv_fusion == "state"
    with pytest.raises(ValueError, match=r"`fusion` is of untrained .* has state, got paper"):
        PipelineBase(ModelSettings(model=pipeline_dir, fusion="paper"), 0)
