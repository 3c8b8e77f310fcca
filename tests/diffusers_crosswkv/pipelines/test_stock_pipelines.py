"""The pipelines of Stable Diffusion and SDXL, unchanged, with our U-Net in the place of theirs."""

import functools

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from diffusers_crosswkv import DIR7UNet2DConditionModel, convert_unet

SIZE = 16  # of images
PICTURE = torch.linspace(0, 1, 3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)
MASK = torch.zeros(1, 1, SIZE, SIZE)
MASK[..., SIZE // 2 :] = 1
CASES = {  # class; what makes its components; what its call needs besides the prompt
    "text": ("StableDiffusionPipeline", {}, {}),
    "image": ("StableDiffusionImg2ImgPipeline", {}, {"image": PICTURE, "strength": 0.9}),
    "inpaint": ("StableDiffusionInpaintPipeline", {}, {"image": PICTURE, "mask_image": MASK, "strength": 0.9}),
    "inpaint, 9 channels": (
        "StableDiffusionInpaintPipeline",
        {"in_channels": 9},
        {"image": PICTURE, "mask_image": MASK},
    ),
    "control": ("StableDiffusionControlNetPipeline", {"control": True}, {"image": PICTURE}),
    "XL, text": ("StableDiffusionXLPipeline", {"xl": True}, {}),
    "XL, image": ("StableDiffusionXLImg2ImgPipeline", {"xl": True}, {"image": PICTURE, "strength": 0.9}),
    "XL, inpaint": (
        "StableDiffusionXLInpaintPipeline",
        {"xl": True},
        {"image": PICTURE, "mask_image": MASK, "strength": 0.9},
    ),
    "XL, control": ("StableDiffusionXLControlNetPipeline", {"xl": True, "control": True}, {"image": PICTURE}),
}


def make_pipeline(name, components):
    cls = getattr(diffusers, name)
    options = {"add_watermarker": False} if "XL" in name else {"requires_safety_checker": False}
    pipeline = cls(**components, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=CASES)
def case(request, stable_diffusion_components):
    """A pipeline, and `draw(prompt, ...)`, which gives images `[B, 3, height, width]`."""
    name, make_components, arguments = CASES[request.param]
    pipeline = make_pipeline(name, stable_diffusion_components(**make_components))
    return pipeline, functools.partial(draw, pipeline, **arguments)


def draw(pipeline, prompt="a seven", **arguments):
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"}
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, **settings | arguments).images


def embeddings(pipeline, prompt, negative_prompt):
    """`[negative, positive]`, as the pipeline batches them."""
    encoded = pipeline.encode_prompt(
        prompt,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negative_prompt,
    )
    return torch.cat([encoded[1], encoded[0]])


def assert_differ(*images):
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (image - other).abs().max() > 1e-3


def test_prompts_and_guidance(case):
    _, draw = case
    images = (
        draw("a seven"),
        draw("a three"),
        draw("a seven", negative_prompt="thin"),
        draw("a seven", guidance_scale=1.0),
    )
    assert all(x.shape == (1, 3, SIZE, SIZE) and x.isfinite().all() for x in images)
    assert_differ(*images)
    torch.testing.assert_close(draw("a seven"), images[0])


def test_prompt_state(case):
    """The U-Net reads the state of both prompts, and not the text that the pipeline encodes besides."""
    pipeline, draw = case
    state = pipeline.unet.encode_prompt(embeddings(pipeline, "a seven", "thin"))
    from_text = draw("a seven", negative_prompt="thin")
    read = draw("a three", negative_prompt="thin", cross_attention_kwargs={"prompt_state": state})
    if any(word in type(pipeline).__name__ for word in ("XL", "ControlNet")):
        # SDXL is conditioned on the pooled text too, and a ControlNet on the text itself: no parts of a prompt state
        assert_differ(from_text, read)
        read = draw("a seven", negative_prompt="thin", cross_attention_kwargs={"prompt_state": state})
    torch.testing.assert_close(read, from_text, rtol=1e-4, atol=1e-4)
    alone = draw("a seven", guidance_scale=1.0, cross_attention_kwargs={"prompt_state": state[1]})
    torch.testing.assert_close(alone, draw("a seven", guidance_scale=1.0), rtol=1e-4, atol=1e-4)


def test_a_state_of_the_wrong_batch_says_how_to_repeat_it(case):
    pipeline, draw = case
    state = pipeline.unet.encode_prompt(embeddings(pipeline, "a seven", ""))[1]
    with pytest.raises(ValueError, match=r"must hold one prompt per sample, got 1 and 2; repeat prompts by indexing"):
        draw("a seven", cross_attention_kwargs={"prompt_state": state})


def test_several_images_per_prompt(case):
    pipeline, draw = case
    prompts = ["a seven", "a three"]
    arguments = {"negative_prompt": ["", ""], "num_images_per_prompt": 2}
    if isinstance(pipeline, StableDiffusionImg2ImgPipeline):  # it warns if it has to repeat a picture
        arguments["image"] = PICTURE.expand(4, -1, -1, -1)
    images = draw(prompts, **arguments)
    assert images.shape == (4, 3, SIZE, SIZE)
    state = pipeline.unet.encode_prompt(embeddings(pipeline, prompts, ["", ""]))
    state = state[[0, 0, 1, 1, 2, 2, 3, 3]]  # negative prompts come first, then the prompts
    read = draw(prompts, **arguments, cross_attention_kwargs={"prompt_state": state})
    torch.testing.assert_close(read, images, rtol=1e-4, atol=1e-4)


def test_save_and_load(case, tmp_path):
    pipeline, draw = case
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is type(pipeline)
    assert type(loaded.unet) is DIR7UNet2DConditionModel
    loaded.set_progress_bar_config(disable=True)
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            weights = loaded.components[name].state_dict()
            torch.testing.assert_close(weights, component.state_dict(), rtol=0, atol=0)
    # weights of a file lie anywhere in memory, and float32 products of some CPUs round otherwise there
    draw_again = functools.partial(globals()["draw"], loaded.to(torch.float64), **draw.keywords)
    pipeline.to(torch.float64)
    image, again = (of("a seven", negative_prompt="thin") for of in (draw, draw_again))
    torch.testing.assert_close(again, image, rtol=0, atol=1e-9)


@pytest.mark.parametrize("xl", [False, True])
def test_control_reaches_the_unet(stable_diffusion_components, xl):
    name = "StableDiffusionXLControlNetPipeline" if xl else "StableDiffusionControlNetPipeline"
    pipeline = make_pipeline(name, stable_diffusion_components(xl=xl, control=True))
    assert_differ(*(draw(pipeline, image=PICTURE, controlnet_conditioning_scale=scale) for scale in (0.0, 0.5, 1.0)))


@pytest.mark.parametrize("value_dim", [None, 64])
def test_a_controlnet_from_our_unet(make_unet, value_dim):
    """As docs/troubleshooting.md has it; values of another width than the block's have no place in softmax layers."""
    unet = make_unet(crosswkv_value_dim=value_dim)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*\.attn2\.crosswkv\."):
        ControlNetModel.from_unet(unet)
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    own, given = controlnet.state_dict(), unet.state_dict()
    shared = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
    controlnet.load_state_dict(shared, strict=False)
    after = controlnet.state_dict()
    assert all(torch.equal(after[name], x) for name, x in shared.items())
    without = {name for name in own.keys() - shared.keys() if not name.startswith("controlnet_")}
    wide = (".attn2.to_v.weight", ".attn2.to_out.0.weight") if value_dim else ()
    assert all(name.endswith(wide) for name in without) and bool(without) == bool(wide)


def test_converted(stable_diffusion_components, state_fusion):
    stock = make_pipeline("StableDiffusionPipeline", stable_diffusion_components(crosswkv=False))
    unet = convert_unet(stock.unet, state_fusion, crosswkv_head_dim=8)
    converted = StableDiffusionPipeline(**stock.components | {"unet": unet}, requires_safety_checker=False)
    converted.set_progress_bar_config(disable=True)
    image = draw(converted)
    assert image.isfinite().all()
    assert_differ(image, draw(converted, "a three"), draw(stock))
