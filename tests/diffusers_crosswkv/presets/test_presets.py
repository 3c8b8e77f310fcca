import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusers_crosswkv import DIR7UNet2DConditionModel, load_preset, presets

PARAMETERS = {  # the smallest and the largest number that the preset may have
    "dir7_tiny": (0.4e6, 0.6e6),
    "dir7_s": (38.9e6 * 0.995, 38.9e6 * 1.005),
    "dir7_h": (779e6 * 0.995, 779e6 * 1.005),
    "dir7_sd15": (859_520_964, 859_520_964 * 1.03),
    "dir7_sdxl": (2_567_463_684, 2_567_463_684 * 1.03),
}
STOCK_PARAMETERS = {"dir7_sd15": 859_520_964, "dir7_sdxl": 2_567_463_684}
MILLIONS = re.compile(r"\| `(\w+)` \| ([\d.]+) M \|")


def make(name, cls=DIR7UNet2DConditionModel, **changes):
    """Without memory for weights."""
    config = load_preset(name) | changes
    if cls is UNet2DConditionModel:
        config = {key: value for key, value in config.items() if not key.startswith(("crosswkv_", "_class_name"))}
    with torch.device("meta"):
        unet = cls.from_config(config)
    return unet.to("meta")  # `torch.linspace` may escape the context once transformers has loaded a model


def test_every_file_is_tested():
    names = {path.stem for path in Path(presets.__file__).parent.glob("*.json")}
    assert names == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    fewest, most = PARAMETERS[name]
    count = make(name).num_parameters()
    assert fewest <= count <= most
    said = dict(MILLIONS.findall(load_preset.__doc__))[name]
    digits = len(said.partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == said


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_file_says_what_the_model_is(name):
    """Every value of the file is an argument of the class, and the model's config has it."""
    preset = load_preset(name)
    assert preset.pop("_class_name") == "DIR7UNet2DConditionModel"
    config = json.loads(make(name).to_json_string())
    assert {key: config[key] for key in preset} == preset


@pytest.mark.parametrize("name", PARAMETERS)
def test_forward_without_weights(name):
    unet = make(name)
    config = unet.config
    size = (2, config.in_channels, config.sample_size, config.sample_size)
    conditions = None
    if config.addition_embed_type == "text_time":  # SDXL: pooled text, and six numbers about size and crop
        conditions = {"text_embeds": torch.empty(2, 1280, device="meta"), "time_ids": torch.empty(2, 6, device="meta")}
    text = torch.empty(2, 77, config.cross_attention_dim, device="meta")
    timestep = torch.empty(2, device="meta")
    noise_pred = unet(torch.empty(size, device="meta"), timestep, text, added_cond_kwargs=conditions).sample
    assert noise_pred.shape == size


@pytest.mark.parametrize(("name", "count"), STOCK_PARAMETERS.items())
def test_stock_weights_fit(name, count):
    stock = make(name, UNet2DConditionModel)
    assert stock.num_parameters() == count
    ours = {key: x.shape for key, x in make(name).state_dict().items()}
    assert {key: x.shape for key, x in stock.state_dict().items()}.items() <= ours.items()
    assert all(".attn2.crosswkv." in key for key in ours.keys() - stock.state_dict().keys())


def test_dir7_s_predicts_latents_and_pixels():
    text = torch.randn(1, 5, 768)
    with torch.inference_mode():
        for changes in ({}, {"in_channels": 3, "out_channels": 3, "sample_size": 16}):
            unet = DIR7UNet2DConditionModel.from_config(load_preset("dir7_s"), **changes)
            sample = torch.randn(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
            read = unet(sample, 500, None, cross_attention_kwargs={"prompt_state": unet.encode_prompt(text)}).sample
            assert read.shape == sample.shape
            torch.testing.assert_close(unet(sample, 500, text).sample, read)
            assert not torch.allclose(unet(sample, 500, 2 * text).sample, read)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"`name` must be one of the presets dir7_h, dir7_s, .*, got 'dir7_m'\."):
        load_preset("dir7_m")
