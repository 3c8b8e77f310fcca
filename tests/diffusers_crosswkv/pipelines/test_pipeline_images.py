"""The other pipelines over the same components: from images, and around masks."""

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
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from drawing import PROMPTS, generators, images
from vaes import tiny_vae

from diffusers_crosswkv import DIR7Img2ImgPipeline, DIR7InpaintPipeline, DIR7Pipeline

PIPELINES = (DIR7Pipeline, DIR7Img2ImgPipeline, DIR7InpaintPipeline)


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
    # a tuple of generators is as good as a list
    alone = images(pipeline, PROMPTS[1], image=other, generator=tuple(generators(2)), **settings)
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
