import platform
import resource
import subprocess
import sys

import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
)
from drawing import PROMPTS, generators, images
from vaes import tiny_vae

from diffusers_crosswkv import DIR7Pipeline, PromptState
from diffusers_crosswkv.pipelines.denoising import step_arguments


def test_save_and_load_by_every_door(make_pipeline, fusion, tmp_path):
    pipeline = make_pipeline(crosswkv_fusion=fusion)
    expected = images(pipeline, PROMPTS)
    pipeline.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".py", ".safetensors"}
    for door in (DiffusionPipeline, DIR7Pipeline, AutoPipelineForText2Image):
        loaded = door.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is DIR7Pipeline
        assert torch.equal(images(loaded, PROMPTS), expected)


def test_importing_the_package_is_enough_in_a_new_process(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    code = (
        "import diffusers_crosswkv, sys; from diffusers import DiffusionPipeline; "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1]); print(type(pipe).__name__, type(pipe.unet).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["DIR7Pipeline", "DIR7UNet2DConditionModel"]


def test_same_seed_alone_and_in_a_batch(make_pipeline, fusion):
    pipeline = make_pipeline(crosswkv_fusion=fusion).to(torch.float64)  # an untrained U-Net amplifies rounding
    both = images(pipeline, PROMPTS, output_type="latent")
    # a tuple of generators is as good as a list
    alone = images(pipeline, PROMPTS[1], generator=tuple(generators(2)), output_type="latent")
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-8)


def test_prompt_states_replace_prompts(make_pipeline, state_fusion, tmp_path):
    pipeline = make_pipeline(crosswkv_fusion=state_fusion)
    expected = images(pipeline, PROMPTS, negative_prompt="a zero")
    state, negative = pipeline.encode_prompt_state(PROMPTS), pipeline.encode_prompt_state("a zero")
    state.save(tmp_path / "prompt.safetensors")
    read = images(
        pipeline, prompt_state=PromptState.load(tmp_path / "prompt.safetensors"), negative_prompt_state=negative
    )
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-5)


def test_prompt_continues_a_state(make_pipeline):
    pipeline = make_pipeline()
    state = pipeline.encode_prompt_state("a seven")
    continued = pipeline.encode_prompt_state(PROMPTS, prompt_state=state[[0, 0]])
    expected = images(pipeline, prompt_state=continued)
    torch.testing.assert_close(images(pipeline, PROMPTS, prompt_state=state), expected, rtol=0, atol=1e-5)
    assert not torch.equal(images(pipeline, PROMPTS), expected)


def test_the_text_is_scanned_once(make_pipeline):
    pipeline = make_pipeline()
    scans = []
    writer = pipeline.unet._crosswkv_attentions[0].crosswkv.text_writer
    writer.register_forward_hook(lambda *args: scans.append(1))
    images(pipeline, PROMPTS, num_inference_steps=5)
    assert len(scans) == 2  # the prompts and the negative prompt, not once per step


def test_guidance_one_needs_no_negative(make_pipeline, fusion):
    pipeline = make_pipeline(crosswkv_fusion=fusion)
    plain = images(pipeline, PROMPTS, guidance_scale=1.0)
    assert torch.equal(images(pipeline, PROMPTS, guidance_scale=1.0, negative_prompt="a zero"), plain)
    assert not torch.equal(images(pipeline, PROMPTS, guidance_scale=3.0), plain)


def test_images_per_prompt_and_sizes(make_pipeline, fusion):
    pipeline = make_pipeline(crosswkv_fusion=fusion)
    out = images(pipeline, PROMPTS, num_images_per_prompt=2, generator=generators(1, 2, 3, 4), height=12, width=16)
    assert out.shape == (4, 1, 12, 16)
    assert ((out >= 0) & (out <= 1)).all()
    exact = {"output_type": "latent", "height": 12, "width": 16}
    pipeline.to(torch.float64)
    several = images(pipeline, PROMPTS, num_images_per_prompt=2, generator=generators(1, 2, 3, 4), **exact)
    fourth = images(pipeline, PROMPTS[1], generator=generators(4), **exact)
    torch.testing.assert_close(several[3:], fourth, rtol=0, atol=1e-8)


def test_output_types(make_pipeline):
    pipeline = make_pipeline()
    picture = images(pipeline, "a 7", output_type="pil", generator=None)[0]
    assert (picture.size, picture.mode) == ((8, 8), "L")
    assert images(pipeline, "a 7", output_type="np", generator=None).shape == (1, 8, 8, 1)
    assert images(pipeline, "a 7", output_type="latent", generator=None).shape == (1, 1, 8, 8)
    as_tuple = pipeline("a 7", num_inference_steps=1, return_dict=False)
    assert isinstance(as_tuple, tuple)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_other_schedulers(make_pipeline, scheduler):
    out = images(make_pipeline(scheduler=scheduler()), PROMPTS)
    assert out.isfinite().all()


def test_noise_is_scaled_as_the_scheduler_asks(make_pipeline):
    """Euler's loop, written out: start at sigma_max, scale inputs by 1 / sqrt(1 + sigma^2), step along sigma."""
    pipeline = make_pipeline(scheduler=EulerDiscreteScheduler(timestep_spacing="leading")).to(torch.float64)
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    settings = {"generator": None, "guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "latent"}
    got = images(pipeline, "a 7", latents=noise, **settings)
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(4)
    state = pipeline.encode_prompt_state("a 7")
    sigmas = scheduler.sigmas.double()
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            scaled = x / (sigmas[i] ** 2 + 1) ** 0.5
            epsilon = pipeline.unet(scaled, t, None, cross_attention_kwargs={"prompt_state": state}).sample
            x = x + (sigmas[i + 1] - sigmas[i]) * epsilon
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


def test_ddim_clips_noise_and_image_alike(make_pipeline):
    """With an estimate that is clipped while the noise is not, guidance drives pixel models into saturation."""
    pipeline = make_pipeline(scheduler=DDIMScheduler(clip_sample=True))
    assert step_arguments(pipeline, None, 0.0) == {"generator": None, "eta": 0.0, "use_clipped_model_output": True}
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    assert "use_clipped_model_output" not in step_arguments(pipeline, None, 0.0)


def test_callback_sees_and_replaces_latents(make_pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    out = images(make_pipeline(), "a 7", callback_on_step_end=callback, generator=None)
    assert seen == [0, 1, 2]
    assert (out == 0.5).all()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_that_a_step_frees_serves_the_next_one(make_pipeline):
    faults = []

    def callback(pipe, step, timestep, tensors):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**26)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return {}

    images(make_pipeline(), "a 7", callback_on_step_end=callback, generator=None)
    assert faults[0] > 100  # pages of 256 MiB, fetched in the first step alone
    assert max(faults[1:]) < faults[0] // 10


def test_latent_space(make_pipeline, tmp_path):
    vae = tiny_vae()
    pipeline = make_pipeline(in_channels=4, out_channels=4)
    pipeline = DIR7Pipeline(**(pipeline.components | {"vae": vae}))
    pipeline.set_progress_bar_config(disable=True)
    expected = images(pipeline, PROMPTS)
    assert expected.shape == (2, 3, 16, 16)
    latents = images(pipeline, PROMPTS, output_type="latent")
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(expected, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images(loaded, PROMPTS), expected)
    with pytest.raises(ValueError, match="`height` must be a positive multiple of 2, got 15"):
        pipeline("a 7", height=15)


def test_prepend_endoftext_is_a_config_value(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    assert pipeline.config.prepend_endoftext is True  # the tokenizer has the token
    with_token = pipeline.encode_prompt("a 7")[0].shape[1]
    pipeline = DIR7Pipeline(**pipeline.components, prepend_endoftext=False)
    assert pipeline.encode_prompt("a 7")[0].shape[1] == with_token - 1
    pipeline.save_pretrained(tmp_path)
    assert DiffusionPipeline.from_pretrained(tmp_path).config.prepend_endoftext is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`prompt`, `prompt_embeds` or `prompt_state` must be given"),
        ({"prompt": []}, r"`prompt` must be a string or a non-empty list of strings, got \[\]"),
        ({"prompt": 7}, "`prompt` must be a string or a non-empty list of strings, got 7"),
        ({"prompt": "a", "negative_prompt": ["b", "c"]}, "got 2 and 1 prompts"),
        ({"prompt": "a", "width": -8}, "`width` must be a positive multiple of 1, got -8"),
        ({"prompt": "a", "height": 0}, "`height` must be a positive multiple of 1, got 0"),
        ({"prompt": "a", "height": 8.0}, "`height` must be a positive multiple of 1, got 8.0"),
        ({"prompt": "a", "num_inference_steps": 0}, "`num_inference_steps` must be a whole number of at least 1"),
        ({"prompt": "a", "num_images_per_prompt": 1.5}, "`num_images_per_prompt` must be a whole number"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "`guidance_scale` must be finite, got nan"),
        ({"prompt": "a", "output_type": "jpg"}, "`output_type` must be pil, np, pt or latent, got 'jpg'"),
        ({"prompt": "a", "prompt_state": "b"}, "`prompt_state` must be a PromptState, got str"),
        ({"prompt": "a", "generator": generators(1, 2)}, "one or one per image, got 2 for 1 images"),
        ({"prompt": "a", "latents": torch.zeros(2, 1, 8, 8)}, r"`latents` must be finite and \[1, 1, 8, 8\]"),
        ({"prompt": "a", "latents": torch.full((1, 1, 8, 8), torch.nan)}, "not finite"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": "latents"}, r"a list of names, .*; pass \['latents'\]"),
        (
            {"prompt": "a", "callback_on_step_end_tensor_inputs": ["prompt"]},
            "may name latents, prompt_state, .*, got",
        ),
    ],
)
def test_bad_inputs(make_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**arguments)


def test_prompt_state_of_another_model_is_refused(make_pipeline):
    state = make_pipeline(seed=1).encode_prompt_state("a 7")
    with pytest.raises(ValueError, match="it was made for another model"):
        make_pipeline()(prompt_state=state)
    for prompts in ({}, {"prompt": "a 7", "negative_prompt": "a 3"}):
        for name in ("prompt_state", "negative_prompt_state"):
            with pytest.raises(ValueError, match="there are no prompt states"):
                make_pipeline(crosswkv_fusion="paper")(**prompts, **{name: state})
