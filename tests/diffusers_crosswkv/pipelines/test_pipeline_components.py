"""Components that users of Stable Diffusion's pipelines change, add or move."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import convert_state_dict_to_diffusers
from drawing import PROMPTS, images
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPConfig, CLIPImageProcessor

from diffusers_crosswkv import DIR7Pipeline


@pytest.mark.parametrize("targets", [["to_q", "to_k", "to_v", "to_out.0"], ["gate_lora.expand", "decay_lora.reduce"]])
def test_lora(make_pipeline, tmp_path, targets):
    """In U-Net and text encoder: saved, loaded, scaled, switched off, fused."""

    def velocity(pipeline, **settings):  # what the U-Net predicts, not clipped
        fixed = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "prompt": PROMPTS}
        return images(pipeline, **(fixed | settings))

    pipeline = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler())
    before = velocity(pipeline)
    lora = {"r": 4, "lora_alpha": 4, "init_lora_weights": False}
    pipeline.unet.add_adapter(LoraConfig(target_modules=targets, **lora), "style")
    pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"], **lora), "style")
    with_lora = velocity(pipeline)
    assert not torch.equal(with_lora, before)
    layers = [
        get_peft_model_state_dict(model, adapter_name="style") for model in (pipeline.unet, pipeline.text_encoder)
    ]
    DIR7Pipeline.save_lora_weights(tmp_path, *(convert_state_dict_to_diffusers(x) for x in layers))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]

    fresh = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler())
    fresh.load_lora_weights(tmp_path, adapter_name="style")
    torch.testing.assert_close(velocity(fresh), with_lora, rtol=0, atol=1e-4)
    half = velocity(fresh, cross_attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(velocity(fresh), with_lora, rtol=0, atol=1e-4)  # a call's scale is the call's
    state, negative = (
        fresh.encode_prompt_state(text, cross_attention_kwargs={"scale": 0.5}) for text in (PROMPTS, "")
    )
    states = {"prompt_state": state, "negative_prompt_state": negative}
    read = velocity(fresh, prompt=None, cross_attention_kwargs={"scale": 0.5}, **states)
    torch.testing.assert_close(read, half, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="another LoRA, LoRA scale or"):
        velocity(fresh, prompt=None, **states)
    fresh.set_adapters("style", 0.5)
    velocity(fresh, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(velocity(fresh), half, rtol=0, atol=1e-4)
    fresh.set_adapters("style", 1.0)
    fresh.disable_lora()
    torch.testing.assert_close(velocity(fresh), before, rtol=0, atol=1e-4)
    fresh.enable_lora()
    fresh.fuse_lora()
    torch.testing.assert_close(velocity(fresh), with_lora, rtol=0, atol=1e-4)
    fresh.unfuse_lora()
    fresh.unload_lora_weights()
    torch.testing.assert_close(velocity(fresh), before, rtol=0, atol=1e-4)


def test_vae_slicing_and_tiling(make_latent_pipeline):
    pipeline = make_latent_pipeline()
    expected = images(pipeline, PROMPTS)
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(images(pipeline, PROMPTS), expected, rtol=0, atol=1e-5)
    pipeline.vae.enable_tiling()
    assert images(pipeline, PROMPTS, height=64, width=64).shape == (2, 3, 64, 64)


def test_a_vae_that_overflows_in_float16(make_latent_pipeline, monkeypatch):
    pipeline = make_latent_pipeline()
    expected = images(pipeline, PROMPTS)
    decode, seen = pipeline.vae.decode, []

    def overflows(latents, **kwargs):
        seen.append(latents.dtype)
        (decoded,) = decode(latents.float(), **kwargs) if latents.dtype == torch.float32 else (latents * torch.nan,)
        return (decoded,)

    monkeypatch.setattr(pipeline.vae, "decode", overflows)
    pipeline.vae.to(torch.float16)
    out = images(pipeline, PROMPTS)
    assert seen == [torch.float16, torch.float32]
    assert pipeline.vae.dtype == torch.float16
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-2)


def test_safety_checker(make_latent_pipeline):
    """A checker that finds everything too close to one of its concepts blackens every image and says so."""
    pipeline = make_latent_pipeline()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    )
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(-10)
    size = {"height": 16, "width": 16}
    extractor = CLIPImageProcessor(size=size, crop_size=size)
    components = pipeline.components | {"safety_checker": checker, "feature_extractor": extractor}
    checked = DIR7Pipeline(**components)
    checked.set_progress_bar_config(disable=True)
    out = checked(PROMPTS, num_inference_steps=1, output_type="pt")
    assert out.nsfw_content_detected == [True, True]
    assert (out.images == 0).all()
    assert pipeline(PROMPTS, num_inference_steps=1).nsfw_content_detected is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_latent_pipeline, dtype):
    pipeline = make_latent_pipeline().to(dtype)
    assert images(pipeline, PROMPTS).isfinite().all()
    state = pipeline.encode_prompt_state(PROMPTS)
    assert images(pipeline, prompt_state=state.to(dtype=dtype), negative_prompt="").isfinite().all()


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload(make_latent_pipeline, offload):
    """With the CPU in the place of the accelerator: every part is brought in before it is used, in any order."""
    pipeline = make_latent_pipeline()
    expected = images(pipeline, PROMPTS)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    else:
        cpu = torch.device("cpu")
        pipeline.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(images(pipeline, PROMPTS), expected)
    state = pipeline.encode_prompt_state(PROMPTS)
    torch.testing.assert_close(images(pipeline, prompt_state=state), expected, rtol=0, atol=1e-4)


def test_free_u(make_latent_pipeline):
    pipeline = make_latent_pipeline(up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
    expected = images(pipeline, PROMPTS)
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    images(pipeline, PROMPTS)
    pipeline.disable_freeu()
    assert torch.equal(images(pipeline, PROMPTS), expected)


def test_progress_bar_counts_steps(make_pipeline):
    for scheduler in (DPMSolverMultistepScheduler(), HeunDiscreteScheduler()):
        pipeline = make_pipeline(scheduler=scheduler)
        bars = []
        progress_bar = pipeline.progress_bar

        def watch(*args, _bar=progress_bar, _bars=bars, **kwargs):
            _bars.append(_bar(*args, **kwargs))
            return _bars[-1]

        pipeline.progress_bar = watch
        images(pipeline, PROMPTS, num_inference_steps=5)
        assert bars[0].total == 5
