"""8 bit weights by torchao, asked for through Diffusers and transformers as users do."""

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers import TorchAoConfig as DiffusersTorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig
from unets import relative_error

from diffusers_crosswkv import PromptState


@pytest.fixture
def saved(make_pipeline, tmp_path):
    """A pipeline, and where it lies in float32 and in int8."""
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "float32")
    int8 = {
        "unet": DiffusersTorchAoConfig(Int8WeightOnlyConfig()),
        "text_encoder": TorchAoConfig(Int8WeightOnlyConfig()),
    }
    quantization = PipelineQuantizationConfig(quant_mapping=int8)
    quantized = DiffusionPipeline.from_pretrained(
        tmp_path / "float32", quantization_config=quantization, dtype=torch.float32
    )
    quantized.save_pretrained(tmp_path / "int8")
    return pipeline, quantized, tmp_path


def draw(pipeline, **prompt):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipeline(**prompt, num_inference_steps=3, guidance_scale=2.0, generator=generator, output_type="np").images
    )


def is_int8(weight):
    return getattr(weight, "qdata", weight).dtype == torch.int8


def test_int8_pipeline(saved):
    pipeline, quantized, folder = saved
    loaded = DiffusionPipeline.from_pretrained(folder / "int8", dtype=torch.float32)
    for name, module in loaded.unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert is_int8(module.weight), name
        for parameter_name, parameter in module.named_parameters(recurse=False):
            assert is_int8(parameter) or parameter.dtype == torch.float32, f"{name}.{parameter_name}"
    layer = loaded.unet._crosswkv_attentions[0]
    assert is_int8(layer.to_k.weight) and is_int8(layer.crosswkv.text_writer.decay_lora.reduce.weight)
    assert not is_int8(layer.crosswkv.text_writer.k_a)

    prompt = {"prompt": "a handwritten seven"}
    picture = draw(loaded, **prompt)
    assert torch.equal(picture, draw(quantized, **prompt))
    assert 0 < relative_error(picture, draw(pipeline, **prompt)) < 0.1


def test_prompt_states_of_int8(saved):
    """Saved, loaded and continued; weights this narrow move so far that states of the float32 ones are refused."""
    pipeline, quantized, folder = saved
    state = quantized.encode_prompt_state("a handwritten seven")
    state.save(folder / "seven.safetensors")
    states = {"negative_prompt_state": quantized.encode_prompt_state("")}
    text = draw(quantized, prompt="a handwritten seven")
    for known in (state, PromptState.load(folder / "seven.safetensors")):
        assert relative_error(draw(quantized, prompt_state=known, **states), text) < 1e-5
    continued = quantized.encode_prompt_state("and an eight", prompt_state=state)
    assert len(continued) == 1 and continued.nbytes == state.nbytes
    with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
        draw(quantized, prompt_state=pipeline.encode_prompt_state("a handwritten seven"), **states)
