"""Offloading, casting, quantization, slicing: the text's scan runs before the blocks and must not miss their hooks."""

import accelerate
import pytest
import torch
from diffusers import TorchAoConfig
from diffusers.models.attention_processor import AttnProcessor2_0
from unets import assert_same_model, read, relative_error, unet_inputs

from diffusers_crosswkv import CrossWKVAttnProcessor, DIR7UNet2DConditionModel

CPU = torch.device("cpu")


@pytest.fixture
def model(make_unet, fusion):
    """A U-Net, inputs, what it predicts, and its prompt state."""
    unet, inputs = make_unet(crosswkv_fusion=fusion), unet_inputs()
    with torch.no_grad():
        state = None if fusion == "paper" else unet.encode_prompt(inputs[2])
        return unet, inputs, unet(*inputs).sample, state


def test_sequential_offload(model):
    unet, inputs, expected, state = model
    accelerate.cpu_offload(unet, CPU)
    assert all(x.is_meta for x in unet.parameters())
    assert_same_model(unet, inputs, expected, state, tolerance=0)


def test_model_offload(model):
    unet, inputs, expected, state = model
    unet, hook = accelerate.cpu_offload_with_hook(unet, CPU)
    assert_same_model(unet, inputs, expected, state, tolerance=0)
    hook.offload()
    assert_same_model(unet, inputs, expected, state, tolerance=0)


LEAVES, BLOCKS = {"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}


@pytest.mark.parametrize("kind", [LEAVES, BLOCKS])
def test_group_offload(model, kind, tmp_path):
    """To disk: there, weights that have not been fetched are not merely elsewhere, but gone."""
    unet, inputs, expected, state = model
    unet.enable_group_offload(CPU, CPU, offload_to_disk_path=str(tmp_path), **kind)
    if state is not None:
        unet.check_prompt_state(state)
    assert_same_model(unet, inputs, expected, state, tolerance=0)


def test_a_state_is_checked_once_under_group_offload(make_unet, monkeypatch):
    unet, inputs = make_unet(), unet_inputs()
    unet.enable_group_offload(CPU, CPU, **BLOCKS)
    with torch.no_grad():
        state = unet.encode_prompt(inputs[2])
        read(unet, inputs, state)
        monkeypatch.setattr(unet, "fingerprint", lambda: pytest.fail("compared again"))
        read(unet, inputs, state)


def test_layerwise_casting(make_unet):
    unet, inputs = make_unet(), unet_inputs()
    with torch.no_grad():
        before = unet(*inputs).sample
        state = unet.encode_prompt(inputs[2])
        unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        kept = {
            name.split(".")[-3] for name, x in unet.named_parameters() if x.dtype == torch.float32 and "attn2" in name
        }
        assert kept >= {"text_writer", "decay_lora", "gate_lora"}
        assert {unet._crosswkv_attentions[0].to_k.weight.dtype} == {torch.float8_e4m3fn}
        expected = unet(*inputs).sample
        assert 1e-3 < relative_error(expected, before) < 0.3
        own = unet.encode_prompt(inputs[2])
        assert relative_error(read(unet, inputs, own), expected) < 1e-5
        with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
            read(unet, inputs, state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # of torchao
def test_quantized_weights(make_unet, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    unet, inputs = make_unet(), unet_inputs()
    unet.save_pretrained(tmp_path)
    with torch.no_grad():
        before, state = unet(*inputs).sample, unet.encode_prompt(inputs[2])
        config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        loaded = DIR7UNet2DConditionModel.from_pretrained(
            tmp_path, quantization_config=config, torch_dtype=torch.float32
        )
        assert "qdata" in dir(loaded._crosswkv_attentions[0].to_k.weight)
        expected = loaded(*inputs).sample
        assert 1e-4 < relative_error(expected, before) < 0.1
        own = loaded.encode_prompt(inputs[2])
        assert relative_error(read(loaded, inputs, own), expected) < 1e-5
        assert own.fingerprint.shape == state.fingerprint.shape
        other = make_unet(seed=1).encode_prompt(inputs[2])
        with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
            read(loaded, inputs, other)


def test_processors_and_formats(model):
    unet, inputs, expected, state = model
    keys = list(unet.state_dict())
    for call in (
        lambda: unet.set_attention_slice("max"),
        lambda: unet.set_attention_slice("auto"),
        lambda: unet.set_attn_processor(AttnProcessor2_0()),
        lambda: unet.fuse_qkv_projections(),
        lambda: unet.unfuse_qkv_projections(),
        lambda: unet.disable_xformers_memory_efficient_attention(),
        lambda: unet.set_default_attn_processor(),
        lambda: unet.to(memory_format=torch.channels_last),
    ):
        call()
        assert_same_model(unet, inputs, expected, state, tolerance=2e-6)
        assert all(type(attn.processor) is CrossWKVAttnProcessor for attn in unet._crosswkv_attentions)
    added = [name for name in unet.state_dict() if name not in keys]
    assert all("attn1.to_qkv" in name for name in added)  # as in the stock class


def test_freeu(make_unet):
    unet, inputs = make_unet(block_out_channels=(16, 16)), unet_inputs()
    with torch.no_grad():
        expected = unet(*inputs).sample
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        changed = unet(*inputs).sample
        unet.disable_freeu()
        assert torch.equal(unet(*inputs).sample, expected)
    assert changed.isfinite().all()
