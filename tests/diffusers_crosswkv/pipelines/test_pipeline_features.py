"""What users of Stable Diffusion's pipelines expect besides a call with a prompt."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPConfig, CLIPImageProcessor
from vaes import tiny_vae

from diffusers_crosswkv import DIR7Img2ImgPipeline, DIR7InpaintPipeline, DIR7Pipeline

PROMPTS = ["a handwritten seven", "手写的数字三"]
PIPELINES = (DIR7Pipeline, DIR7Img2ImgPipeline, DIR7InpaintPipeline)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images(pipeline, *args, **kwargs):
    kwargs = {"num_inference_steps": 3, "output_type": "pt", "generator": generators(1, 2)} | kwargs
    return pipeline(*args, **kwargs).images


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


# Arguments


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


# Other pipelines over the same components


def test_components_given_to_from_pretrained(make_latent_pipeline, tmp_path):
    make_latent_pipeline().save_pretrained(tmp_path)
    vae = tiny_vae()
    for door in (DiffusionPipeline, DIR7Pipeline, AutoPipelineForText2Image):
        assert door.from_pretrained(tmp_path, vae=vae).vae is vae
        light = door.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
        assert light.text_encoder is None
    light.save_pretrained(tmp_path / "light")
    assert DiffusionPipeline.from_pretrained(tmp_path / "light").text_encoder is None


def test_into_stock_pipelines(make_latent_pipeline):
    pipeline = make_latent_pipeline()
    pipeline.scheduler = EulerDiscreteScheduler(steps_offset=1)
    stock = StableDiffusionPipeline.from_pipe(pipeline, unet=pipeline.unet)
    stock.set_progress_bar_config(disable=True)
    assert stock("a 7", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_auto_pipelines_find_theirs(make_latent_pipeline, tmp_path):
    make_latent_pipeline().save_pretrained(tmp_path)
    autos = (AutoPipelineForText2Image, AutoPipelineForImage2Image, AutoPipelineForInpainting)
    for auto, cls in zip(autos, PIPELINES, strict=True):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is cls
        for other, target in zip(autos, PIPELINES, strict=True):
            converted = other.from_pipe(loaded)
            assert type(converted) is target
            assert converted.unet is loaded.unet


def test_from_pipe(make_latent_pipeline):
    pipeline = make_latent_pipeline()
    for cls in PIPELINES:
        other = cls.from_pipe(pipeline)
        assert all(other.components[name] is pipeline.components[name] for name in ("unet", "vae", "text_encoder"))
        assert other.config.prepend_endoftext is True


def test_image_to_image(make_latent_pipeline, photo):
    pipeline = make_latent_pipeline(DIR7Img2ImgPipeline)
    settings = {"image": photo, "num_inference_steps": 10}
    distances = []
    for strength in (0.1, 0.5, 1.0):
        out = images(pipeline, PROMPTS, strength=strength, **settings)
        assert out.shape == (2, 3, 16, 16)
        assert pipeline.num_timesteps == round(10 * strength)
        distances.append(out)
    assert not torch.equal(distances[0], distances[1])
    assert not torch.equal(images(pipeline, PROMPTS[::-1], strength=0.5, **settings), distances[1])
    state, negative = pipeline.encode_prompt_state(PROMPTS), pipeline.encode_prompt_state("")
    read = images(pipeline, prompt_state=state, negative_prompt_state=negative, strength=0.5, **settings)
    torch.testing.assert_close(read, distances[1], rtol=0, atol=1e-4)


def test_image_to_image_starts_at_the_image(make_pipeline):
    """In pixel space, where nothing is encoded: the noised image is what the first step sees."""
    pipeline = DIR7Img2ImgPipeline(**make_pipeline(scheduler=DDIMScheduler()).components)
    pipeline.set_progress_bar_config(disable=True)
    picture = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    images(pipeline, "a 7", image=picture, strength=0.2, num_inference_steps=10, generator=generators(3))
    sample, timestep = seen[0]
    pixels = torch.from_numpy(np.array(picture)).float() / 127.5 - 1
    alpha = pipeline.scheduler.alphas_cumprod[timestep]
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample[:1], alpha.sqrt() * pixels + (1 - alpha).sqrt() * noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [DIR7Img2ImgPipeline, DIR7InpaintPipeline])
def test_same_seed_alone_and_in_a_batch(make_latent_pipeline, photo, left_half, cls):
    pipeline = make_latent_pipeline(cls).to(torch.float64)
    other = photo.rotate(90)
    settings = {"strength": 0.7, "output_type": "latent"}
    if cls is DIR7InpaintPipeline:
        settings["mask_image"] = left_half
    both = images(pipeline, PROMPTS, image=[photo, other], **settings)
    alone = images(pipeline, PROMPTS[1], image=other, generator=generators(2), **settings)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("form", ["pil", "numpy", "torch", "latent"])
def test_forms_of_an_image(make_latent_pipeline, photo, form):
    pipeline = make_latent_pipeline(DIR7Img2ImgPipeline)
    array = np.array(photo).astype(np.float32)[None] / 255
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    forms = {"pil": photo, "numpy": array, "torch": tensor, "latent": torch.randn(1, 4, 8, 8)}
    out = images(pipeline, PROMPTS, image=forms[form], strength=0.5)
    assert out.shape == (2, 3, 16, 16)
    if form != "latent":
        torch.testing.assert_close(out, images(pipeline, PROMPTS, image=photo, strength=0.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting(make_latent_pipeline, photo, left_half, channels, strength):
    pipeline = make_latent_pipeline(DIR7InpaintPipeline, in_channels=channels)
    widths = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    settings = {"mask_image": left_half, "strength": strength, "num_inference_steps": 5}
    out = images(pipeline, PROMPTS, image=photo, output_type="latent", **settings)
    assert set(widths) == {channels}
    assert out.shape == (2, 4, 8, 8)
    if channels == 4:  # what the mask keeps is the image, exactly
        known = pipeline._encode_image(*pipeline._preprocess(photo, 2, 1), generators(1, 2))
        torch.testing.assert_close(out[..., 4:], known[..., 4:])
        assert (out[..., :4] != known[..., :4]).all()
    everything = PIL.Image.new("L", (16, 16), 255)
    other = images(pipeline, PROMPTS, image=photo, output_type="latent", **(settings | {"mask_image": everything}))
    assert not torch.equal(other, out)


def test_inpainting_around_the_mask(make_latent_pipeline, photo):
    """`padding_mask_crop`: what is farther from the mask than that stays as it is, to the pixel."""
    pipeline = make_latent_pipeline(DIR7InpaintPipeline)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:6, 2:6] = 255
    out = pipeline(
        "a 7", image=photo, mask_image=PIL.Image.fromarray(mask), padding_mask_crop=2, num_inference_steps=2
    ).images[0]
    assert out.size == photo.size
    changed = (np.array(out.convert("RGB")) != np.array(photo)).any(axis=-1)
    assert changed[2:6, 2:6].any()
    assert not changed[9:].any()


def test_masked_image_latents(make_latent_pipeline, photo, left_half):
    pipeline = make_latent_pipeline(DIR7InpaintPipeline, in_channels=9)
    latents = torch.randn(1, 4, 8, 8)
    settings = {"mask_image": left_half, "image": latents}
    assert images(pipeline, PROMPTS, masked_image_latents=latents, **settings).isfinite().all()
    with pytest.raises(ValueError, match="pass its `masked_image_latents` as well"):
        images(pipeline, PROMPTS, **settings)


def test_a_vae_with_as_many_latent_channels_as_colours(make_pipeline, photo):
    pipeline = make_pipeline(in_channels=3, out_channels=3)
    vae = tiny_vae(latent_channels=3)
    pipeline = DIR7Img2ImgPipeline(**(pipeline.components | {"vae": vae}))
    pipeline.set_progress_bar_config(disable=True)
    assert images(pipeline, PROMPTS, image=photo, strength=0.5).shape == (2, 3, 16, 16)


def test_images_are_encoded_once(make_latent_pipeline, photo, monkeypatch):
    pipeline = make_latent_pipeline(DIR7Img2ImgPipeline)
    encode, sizes = pipeline.vae.encode, []
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: sizes.append(len(x)) or encode(x))
    images(pipeline, PROMPTS, image=photo, num_images_per_prompt=3, generator=None)
    assert sizes == [1]


def test_inpainting_in_pixel_space_keeps_pixels(make_pipeline):
    pipeline = DIR7InpaintPipeline(**make_pipeline().components)
    pipeline.set_progress_bar_config(disable=True)
    picture = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    mask = PIL.Image.fromarray(np.pad(np.full((8, 4), 255, dtype=np.uint8), ((0, 0), (0, 4))))
    out = pipeline("a 7", image=picture, mask_image=mask, num_inference_steps=3).images[0]
    assert (np.array(out)[:, 4:] == np.array(picture)[:, 4:]).all()
    assert (np.array(out)[:, :4] != np.array(picture)[:, :4]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "`image` must be given"),
        ({"mask_image": None}, "`mask_image` must be given"),
        ({"strength": 0.0}, "`strength` must be above 0 and at most 1, got 0.0"),
        ({"strength": 0.1}, "must give at least one step, got 0.1 times 3"),
        ({"padding_mask_crop": 2}, "needs one PIL image, one PIL mask and `output_type='pil'`, got Image"),
        ({"image": [PIL.Image.new("RGB", (16, 16))] * 3}, "got 3 for 2 prompts and 2 images"),
        ({"mask_image": [PIL.Image.new("L", (16, 16))] * 3}, "one or one per image, got 3 for 2 images"),
        ({"generator": generators(1)}, "one or one per image, got 1 for 2 images"),
    ],
)
def test_bad_images(make_latent_pipeline, photo, left_half, arguments, message):
    pipeline = make_latent_pipeline(DIR7InpaintPipeline)
    with pytest.raises(ValueError, match=message):
        images(pipeline, PROMPTS, **({"image": photo, "mask_image": left_half} | arguments))


# Components


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
