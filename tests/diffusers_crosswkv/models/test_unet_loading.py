"""Saving and loading by every door of Diffusers, and stock weights refused by each."""

import pytest
import torch
from diffusers import AutoModel, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from unets import assert_same_model, unet_inputs

from diffusers_crosswkv import DIR7UNet2DConditionModel

SPLIT = {
    "conv_in": "cpu",
    "time_embedding": "cpu",
    "down_blocks": "disk",
    "mid_block": "cpu",
    "up_blocks.0": "disk",
    "up_blocks.1": "cpu",
    "conv_norm_out": "cpu",
    "conv_out": "disk",
}


@pytest.fixture(autouse=True)
def quiet():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def saved(make_unet, tmp_path):
    """A U-Net, its folder, inputs, what it predicts, and its prompt state."""
    unet, inputs = make_unet(), unet_inputs()
    unet.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        return unet, tmp_path / "whole", inputs, unet(*inputs).sample, unet.encode_prompt(inputs[2])


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_shards_and_variants(saved, tmp_path, low_cpu_mem_usage):
    unet, _, inputs, expected, state = saved
    unet.save_pretrained(tmp_path / "shards", max_shard_size="200KB", variant="fp16")
    assert len(list((tmp_path / "shards").glob("*.fp16-*-of-*.safetensors"))) > 1
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        DIR7UNet2DConditionModel.from_pretrained(tmp_path / "shards")
    kwargs = {"variant": "fp16", "low_cpu_mem_usage": low_cpu_mem_usage}
    loaded = DIR7UNet2DConditionModel.from_pretrained(tmp_path / "shards", **kwargs)
    assert_same_model(loaded, inputs, expected, state, tolerance=0)


def test_device_map_splits_the_unet(make_unet, fusion, tmp_path):
    unet, inputs = make_unet(crosswkv_fusion=fusion), unet_inputs()
    unet.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = unet(*inputs).sample
        state = None if fusion == "paper" else unet.encode_prompt(inputs[2])
    loaded = DIR7UNet2DConditionModel.from_pretrained(tmp_path, device_map=SPLIT, offload_folder=tmp_path / "offload")
    assert loaded.hf_device_map == SPLIT
    assert loaded.down_blocks[0].attentions[0].proj_in.weight.is_meta
    assert_same_model(loaded, inputs, expected, state, tolerance=0)


def test_auto_model_and_dtype(saved):
    _, folder, inputs, expected, state = saved
    loaded = AutoModel.from_pretrained(str(folder), torch_dtype=torch.bfloat16)
    assert type(loaded) is DIR7UNet2DConditionModel
    assert {x.dtype for x in loaded.parameters()} == {torch.bfloat16}
    sample, timestep, text = inputs
    assert_same_model(loaded, (sample.bfloat16(), timestep, text.bfloat16()), expected, state, tolerance=0.1)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_single_file(saved, low_cpu_mem_usage):
    _, folder, inputs, expected, state = saved
    path = folder / "diffusion_pytorch_model.safetensors"
    loaded = DIR7UNet2DConditionModel.from_single_file(path, config=str(folder), low_cpu_mem_usage=low_cpu_mem_usage)
    assert_same_model(loaded, inputs, expected, state, tolerance=0)


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")  # its own call
def test_ema(saved, tmp_path):
    unet, _, inputs, expected, state = saved
    ema = EMAModel(unet.parameters(), decay=0.5, model_cls=DIR7UNet2DConditionModel, model_config=unet.config)
    ema.save_pretrained(tmp_path / "ema")
    loaded = EMAModel.from_pretrained(tmp_path / "ema", DIR7UNet2DConditionModel)
    for parameter in unet.parameters():
        parameter.data.zero_()
    loaded.copy_to(unet.parameters())
    assert_same_model(unet, inputs, expected, state, tolerance=0)


@pytest.fixture
def stock(make_unet, tmp_path):
    config = {name: value for name, value in make_unet().config.items() if not name.startswith(("crosswkv", "_"))}
    unet = UNet2DConditionModel(**config)
    unet.save_pretrained(tmp_path / "stock")
    unet.save_pretrained(tmp_path / "stock", variant="fp16")
    return unet


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"low_cpu_mem_usage": False},
        {"variant": "fp16"},
        {"device_map": "auto"},
        {"crosswkv_fusion": "paper"},
        {"torch_dtype": torch.float16},
        {"crosswkv_value_dim": 64},
    ],
)
def test_stock_folders_are_refused(stock, tmp_path, kwargs):
    with pytest.raises(ValueError, match=r"these are weights of a stock U-Net.*diffusers_crosswkv\.convert_unet"):
        DIR7UNet2DConditionModel.from_pretrained(tmp_path / "stock", crosswkv_head_dim=8, **kwargs)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_stock_weights_beside_our_config_are_refused(stock, make_unet, tmp_path, low_cpu_mem_usage):
    make_unet().save_config(tmp_path / "stock")
    with pytest.raises(ValueError, match=r"missing \(\d+: .*\.crosswkv\..*convert_unet"):
        DIR7UNet2DConditionModel.from_pretrained(tmp_path / "stock", low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("names", ["diffusers", "original", "path"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_stock_single_files_are_refused(stock, make_unet, tmp_path, names, low_cpu_mem_usage):
    make_unet().save_config(tmp_path / "ours")
    source = {
        "diffusers": stock.state_dict(),
        "original": {"model.diffusion_model.input_blocks.0.0.weight": stock.conv_in.weight},
        "path": tmp_path / "stock/diffusion_pytorch_model.safetensors",
    }[names]
    with pytest.raises(ValueError, match=r"these are weights of a stock U-Net.*convert_unet"):
        DIR7UNet2DConditionModel.from_single_file(
            source, config=str(tmp_path / "ours"), low_cpu_mem_usage=low_cpu_mem_usage
        )


def test_stock_state_dicts_are_refused(stock, make_unet):
    unet = make_unet()
    with pytest.raises(RuntimeError, match=r"these are weights of a stock U-Net.*convert_unet"):
        unet.load_state_dict(stock.state_dict())
    missing = unet.load_state_dict(stock.state_dict(), strict=False).missing_keys
    assert missing
    assert all(".crosswkv." in name for name in missing)
    with pytest.raises(RuntimeError, match=r"Missing key.*conv_in\.weight"):
        unet.load_state_dict({name: x for name, x in unet.state_dict().items() if name != "conv_in.weight"})
