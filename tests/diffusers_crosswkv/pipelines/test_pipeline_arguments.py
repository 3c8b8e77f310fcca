"""What a call takes besides a prompt, as in Stable Diffusion's pipelines."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from drawing import PROMPTS, generators, images
from transformers import CLIPConfig
from vaes import tiny_vae

from diffusers_crosswkv import DIR7Img2ImgPipeline, DIR7Pipeline


def test_arguments_of_the_stock_pipeline_are_there_in_its_order():
    stock = [name for name in inspect.signature(StableDiffusionPipeline.__call__).parameters if name != "kwargs"]
    assert list(inspect.signature(DIR7Pipeline.__call__).parameters)[: len(stock)] == stock


FLOW_MATCHING = [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler]
SCHEDULERS = sorted([*DDIMScheduler().compatibles, *FLOW_MATCHING, LCMScheduler], key=lambda cls: cls.__name__)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")  # of Diffusers and NumPy
@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # of torchsde
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.__name__)
def test_schedulers(make_latent_pipeline, scheduler, photo):
    pipeline = make_latent_pipeline()
    pipeline.scheduler = scheduler()
    steps = []

    def count(pipe, step, timestep, tensors):
        steps.append(step)
        return {}

    assert images(pipeline, PROMPTS, num_inference_steps=4, callback_on_step_end=count).isfinite().all()
    assert steps == list(range(pipeline.num_timesteps))
    other = DIR7Img2ImgPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    assert images(other, PROMPTS, image=photo, num_inference_steps=4, strength=0.6).isfinite().all()


def test_own_timesteps_and_sigmas(make_pipeline):
    pipeline = make_pipeline(scheduler=EulerDiscreteScheduler())
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(int(timestep))
        return {}

    images(pipeline, PROMPTS, timesteps=[900, 500, 20], callback_on_step_end=look)
    assert seen == [900, 500, 20]
    seen.clear()
    images(pipeline, PROMPTS, sigmas=[10.0, 1.0, 0.0], callback_on_step_end=look)
    assert len(seen) == 2
    with pytest.raises(ValueError, match="does not support custom"):
        pipeline.scheduler = PNDMScheduler()
        pipeline("a 7", timesteps=[900, 500, 20])


def test_eta_adds_noise(make_pipeline):
    pipeline = make_pipeline(scheduler=DDIMScheduler())
    assert torch.equal(images(pipeline, PROMPTS), images(pipeline, PROMPTS))
    assert not torch.equal(images(pipeline, PROMPTS, eta=1.0), images(pipeline, PROMPTS))


def test_guidance_rescale_restores_the_contrast(make_pipeline):
    """One step of a sampler that returns the prediction: its spread per image is that of the unguided one."""
    pipeline = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler()).to(torch.float64)
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def velocity(**settings):
        out = images(pipeline, PROMPTS, num_inference_steps=1, latents=noise, output_type="latent", **settings)
        return noise - out

    def spread(x):
        return x.std(dim=(1, 2, 3))

    plain, guided = velocity(guidance_scale=1.0), velocity(guidance_scale=8.0)
    torch.testing.assert_close(spread(velocity(guidance_scale=8.0, guidance_rescale=1.0)), spread(plain))
    half = velocity(guidance_scale=8.0, guidance_rescale=0.5)
    torch.testing.assert_close(half, 0.5 * guided + 0.5 * guided * (spread(plain) / spread(guided)).view(2, 1, 1, 1))


def test_guidance_as_an_input_of_the_unet(make_pipeline):
    """A U-Net distilled to take the guidance scale runs once per step, and reads it."""
    pipeline = make_pipeline(scheduler=LCMScheduler(), time_cond_proj_dim=32)
    batches = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    weak, strong = (images(pipeline, PROMPTS, guidance_scale=scale) for scale in (2.0, 8.0))
    assert set(batches) == {2}
    assert not torch.equal(weak, strong)


def test_ending_early(make_pipeline):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = step == 1
        return {}

    pipeline = make_pipeline()
    assert len(images(pipeline, PROMPTS, num_inference_steps=9, callback_on_step_end=stop)) == 2
    assert seen == [0, 1]
    images(pipeline, PROMPTS, num_inference_steps=2, callback_on_step_end=stop)  # the next call starts afresh
    assert seen == [0, 1, 0, 1]


def test_guidance_may_end_early(make_pipeline, fusion):
    """By the attribute that callbacks of Diffusers set, with and without cutting the text themselves."""
    pipeline = make_pipeline(crosswkv_fusion=fusion)
    batches = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def cut(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 0.0
        return {}

    settings = {"num_inference_steps": 3, "generator": generators(1)}
    ours = images(pipeline, PROMPTS[0], callback_on_step_end=cut, **settings)
    assert batches == [2, 1, 1]
    settings = {"num_inference_steps": 3, "generator": generators(1)}
    theirs = images(
        pipeline, PROMPTS[0], callback_on_step_end=SDCFGCutoffCallback(None, cutoff_step_index=0), **settings
    )
    assert batches[3:] == [2, 1, 1]
    assert torch.equal(ours, theirs)


def test_a_callback_may_change_the_prompt(make_pipeline):
    pipeline = make_pipeline()
    other = pipeline.encode_prompt_state(PROMPTS[1])
    negative = pipeline.encode_prompt_state("")
    seen = []

    def change(pipe, step, timestep, tensors):
        seen.append(len(tensors["prompt_state"]))
        return {"prompt_state": negative.cat([negative, other])}

    changed = images(
        pipeline,
        PROMPTS[0],
        generator=generators(1),
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["prompt_state"],
    )
    assert seen == [2, 2, 2]
    assert not torch.equal(changed, images(pipeline, PROMPTS[0], generator=generators(1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_rescale": 1.5}, "`guidance_rescale` must be from 0 to 1, got 1.5"),
        ({"cross_attention_kwargs": {"gligen": 1}}, r"may hold the LoRA's `scale` and .*, got \['gligen'\]"),
        ({"ip_adapter_image": 1, "ip_adapter_image_embeds": []}, "exclude each other"),
        ({"ip_adapter_image_embeds": torch.zeros(1)}, "must be a list, one tensor per IP-Adapter, got Tensor"),
    ],
)
def test_bad_arguments(make_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()("a 7", **arguments)


def test_components_that_do_not_fit(make_pipeline):
    pipeline = make_pipeline()
    config = {name: x for name, x in pipeline.unet.config.items() if not name.startswith(("crosswkv", "_"))}
    stock = UNet2DConditionModel(**config)
    with pytest.raises(ValueError, match=r"a DIR7UNet2DConditionModel, got UNet2DConditionModel.*convert_unet"):
        DIR7Pipeline(**(pipeline.components | {"unet": stock}))
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config={"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="`safety_checker` needs a `feature_extractor`, got None"):
        DIR7Pipeline(**(pipeline.components | {"safety_checker": checker}))
    with pytest.raises(ValueError, match=r"must read 4 channels here, got 9; .* DIR7InpaintPipeline"):
        DIR7Pipeline(**(make_pipeline(in_channels=9, out_channels=4).components | {"vae": tiny_vae()}))("a 7")


def test_a_callback_may_cut_the_negative_prompts_itself(make_pipeline):
    """As Diffusers' guide on callbacks does it, with a batch."""
    pipeline = make_pipeline()
    batches = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def cut(pipe, step, timestep, tensors):
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    images(pipeline, PROMPTS, callback_on_step_end=cut, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert batches == [4, 2, 2]
    with pytest.raises(ValueError, match="must return a PromptState under `prompt_embeds`, got Tensor"):
        images(pipeline, PROMPTS, callback_on_step_end=lambda *args: {"prompt_embeds": torch.zeros(4, 3, 24)})


def test_sizes_from_arguments_latents_or_config(make_pipeline):
    pipeline = make_pipeline(sample_size=None)
    assert images(pipeline, PROMPTS, height=np.int64(8), width=16).shape == (2, 1, 8, 16)
    assert images(pipeline, PROMPTS, latents=torch.randn(2, 1, 12, 8)).shape == (2, 1, 12, 8)
    with pytest.raises(ValueError, match="`height` and `width` must be given: the U-Net's config has no"):
        pipeline("a 7", height=8)


def test_clipping_is_switched_off_for_latents(make_latent_pipeline):
    pipeline = make_latent_pipeline()
    pipeline.scheduler = DDIMScheduler()
    assert images(pipeline, PROMPTS, output_type="latent").abs().max() > 1
    assert pipeline.scheduler.config.clip_sample is False


@pytest.mark.parametrize("kind", ["text", "text_time"])
def test_text_that_is_added_to_the_timestep(make_pipeline, kind):
    """`text` is the pipeline's own; what needs more is refused before work starts."""
    extra = {"addition_embed_type_num_heads": 2} if kind == "text" else {}
    extra |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72} if kind != "text" else {}
    pipeline = make_pipeline(addition_embed_type=kind, **extra)
    if kind == "text":
        assert not torch.equal(images(pipeline, PROMPTS), images(pipeline, PROMPTS[::-1]))
    else:
        with pytest.raises(ValueError, match=r"needs more than text .*'text_time'.* StableDiffusionXLPipeline"):
            pipeline("a 7")
