"""LoRA and PEFT on the projections and on CrossWKV's own layers, with prompt states of the weights in effect."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from unets import read, relative_error, unet_inputs

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "reduce", "expand"]


def add_lora(unet, name="style", seed=1, **config):
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "lora_dropout": 0.5, **config}
    unet.add_adapter(LoraConfig(**config), adapter_name=name)
    for key, parameter in unet.named_parameters():
        if f".{name}." in key and parameter.ndim > 1:
            parameter.data.normal_(0, 0.1)
    unet.eval()


@pytest.fixture
def adapted(make_unet, fusion):
    """A U-Net with a LoRA, inputs, and what it predicts without and with it."""
    unet, inputs = make_unet(crosswkv_fusion=fusion), unet_inputs()
    with torch.no_grad():
        plain = unet(*inputs).sample
        add_lora(unet)
        return unet, inputs, plain, unet(*inputs).sample


@torch.no_grad()
def test_scale_fuse_unfuse_delete(adapted):
    unet, inputs, plain, full = adapted
    assert relative_error(full, plain) > 0.05
    half = unet(*inputs, cross_attention_kwargs={"scale": 0.5}).sample
    assert relative_error(unet(*inputs, cross_attention_kwargs={"scale": 0.0}).sample, plain) < 1e-6
    assert torch.equal(unet(*inputs).sample, full)
    unet.set_adapters(["style"], [0.5])
    assert relative_error(unet(*inputs).sample, half) < 1e-5
    unet.fuse_lora(adapter_names=["style"])
    assert relative_error(unet(*inputs).sample, half) < 1e-5
    unet.unfuse_lora()
    unet.set_adapters(["style"], [{"down": {"block_0": [0.0]}, "mid": 0.3, "up": 0.2}])
    assert relative_error(unet(*inputs).sample, half) > 0.01
    unet.set_adapters(["style"])
    assert relative_error(unet(*inputs).sample, full) < 1e-5
    unet.disable_adapters()
    assert relative_error(unet(*inputs).sample, plain) < 1e-5
    unet.enable_adapters()
    unet.delete_adapters("style")
    unet.unload_lora()
    assert relative_error(unet(*inputs).sample, plain) < 1e-5
    assert not any("lora_A" in name for name in unet.state_dict())


@torch.no_grad()
def test_save_and_load(adapted, make_unet, fusion, tmp_path):
    unet, inputs, _, full = adapted
    unet.save_lora_adapter(tmp_path, adapter_name="style")
    other = make_unet(crosswkv_fusion=fusion)
    name = "pytorch_lora_weights.safetensors"
    other.load_lora_adapter(str(tmp_path), prefix=None, weight_name=name, adapter_name="loaded")
    other.eval()
    assert torch.equal(other(*inputs).sample, full)


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"target_modules": ["reduce"]}])
def test_prompt_states_are_of_the_weights_in_effect(make_unet, kind):
    unet, inputs = make_unet(), unet_inputs()
    plain_state, plain = unet.encode_prompt(inputs[2]), unet(*inputs).sample
    add_lora(unet, **kind)
    full = unet(*inputs).sample
    with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
        read(unet, inputs, plain_state)
    with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
        unet.encode_prompt(inputs[2], prompt_state=plain_state)
    state = unet.encode_prompt(inputs[2])
    assert relative_error(read(unet, inputs, state), full) < 1e-5
    unet.train()  # dropout of the adapters must not reach the fingerprint
    assert torch.equal(unet.fingerprint(), state.fingerprint)
    assert all(module.training for module in unet.modules())
    unet.eval()

    unet.disable_adapters()
    assert relative_error(read(unet, inputs, plain_state), plain) < 1e-5
    unet.enable_adapters()
    unet.fuse_lora()
    assert relative_error(read(unet, inputs, state), full) < 1e-5
    with pytest.raises(ValueError, match="differ by"):
        read(unet, inputs, plain_state)
    unet.unfuse_lora()
    unet.delete_adapters("style")
    assert relative_error(read(unet, inputs, plain_state), plain) < 1e-5
    with pytest.raises(ValueError, match="differ by"):
        read(unet, inputs, state)


@torch.no_grad()
def test_a_state_is_of_one_scale(make_unet):
    unet, inputs = make_unet(), unet_inputs()
    add_lora(unet)
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    expected = unet(*inputs, **half).sample
    state = unet.encode_prompt(inputs[2], **half)
    assert relative_error(read(unet, inputs, state, **half), expected) < 1e-5
    with pytest.raises(ValueError, match="differ by"):
        read(unet, inputs, state)
    assert half == {"cross_attention_kwargs": {"scale": 0.5}}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")  # two adapters are meant
def test_changed_adapters_are_noticed(make_unet):
    unet, inputs = make_unet(), unet_inputs()
    add_lora(unet)
    add_lora(unet, "other", seed=2)
    unet.set_adapters(["style"])
    state = unet.encode_prompt(inputs[2])
    read(unet, inputs, state)
    unet.set_adapters(["style", "other"])
    with pytest.raises(ValueError, match="differ by"):
        read(unet, inputs, state)
    unet.set_adapters(["style"])
    read(unet, inputs, state)
    unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_v").lora_A["style"].weight.mul_(2)
    with pytest.raises(ValueError, match="differ by"):
        read(unet, inputs, state)


def test_only_adapters_are_trained(make_unet):
    unet, inputs = make_unet(), unet_inputs()
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    unet(*inputs).sample.square().mean().backward()
    trained = {name for name, x in unet.named_parameters() if x.requires_grad}
    assert {name for name, x in unet.named_parameters() if x.grad is not None} == trained
    assert any("attn2.crosswkv.text_writer.decay_lora.reduce.lora_B" in name for name in trained)
    assert all("lora_" in name for name in trained)


@torch.no_grad()
def test_keys_of_pipelines(make_unet, tmp_path):
    unet, inputs = make_unet(), unet_inputs()
    add_lora(unet)
    expected = unet(*inputs).sample
    saved = get_peft_model_state_dict(unet, adapter_name="style")
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=saved)
    state_dict, alphas = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), weight_name="pytorch_lora_weights.safetensors"
    )
    assert sum(".crosswkv." in name for name in state_dict) == sum(".crosswkv." in name for name in saved) > 0
    loaded = make_unet()
    StableDiffusionPipeline.load_lora_into_unet(state_dict, alphas, loaded, adapter_name="style")
    loaded.set_adapters(["style"], [2.0])  # these keys carry no alpha: it was twice the rank
    assert relative_error(loaded(*inputs).sample, expected) < 1e-5
