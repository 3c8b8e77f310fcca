"""Small models and data that a training can start from."""

import pytest
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from vaes import tiny_vae

from diffusers_crosswkv.finetuning import settings_from
from diffusers_crosswkv.training.text import make_text_encoder

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """No test leaves anything in the caches of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture
def pipeline_dir(make_pipeline, tmp_path):
    """A DIR-7 pipeline of 8 x 8 grey pixels."""
    make_pipeline().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def stock_dir(tokenizer, tmp_path):
    """A Stable Diffusion pipeline of 16 x 16 pixels."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=2,
    )
    encoder = make_text_encoder(tokenizer, 24, num_layers=1)
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    pipeline = StableDiffusionPipeline(tiny_vae(), encoder, tokenizer, unet, scheduler, None, None, None, False)
    pipeline.save_pretrained(tmp_path / "stock")
    return str(tmp_path / "stock")


@pytest.fixture
def image_folder(tmp_path):
    """Twelve pictures with captions, one without a caption, one that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        colour = COLOURS[i % len(COLOURS)]
        Image.new("RGB", (20 + i, 24), colour).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {colour} picture, number {i}")
    Image.new("RGB", (24, 24)).save(folder / "silent.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a broken picture")
    return str(folder)


@pytest.fixture
def make_settings(pipeline_dir, tmp_path):
    """Settings of a training of four steps; what is given goes before."""

    def make(**given):
        values = {
            "data": "digits",
            "output_dir": str(tmp_path / "run"),
            "max_train_steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 0,
            "checkpointing_steps": 2,
            "max_bad_images": 0.2,  # two of `image_folder`'s fourteen are
            "validation_examples": 4,
            "validation_steps": 2,
            "validation_inference_steps": 2,
            "num_validation_images": 2,
        }
        start = {} if "from_scratch" in given else {"model": pipeline_dir}
        return settings_from({**start, **values, **given})

    return make
