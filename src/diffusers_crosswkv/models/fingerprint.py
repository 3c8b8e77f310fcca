"""Some of what writes a prompt state, shown in a few numbers: tells models apart, whatever their weights lie in.

Linear layers are probed, not read: what they return for a fixed input is the same for weights that are offloaded, cast
or quantized, and counts what adapters (LoRA, DoRA, ...) add to them, merged or not.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from .text_layers import Blocks, offloading_group, onloaded, onloaded_layers

VALUES = 16  # per linear layer or parameter
COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@torch.no_grad()
def fingerprint(blocks: Blocks, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, VALUES]`, float32 on the CPU: a row per linear layer and per other parameter that a text goes through.

    `dtype` is what layers compute in whose weights are kept in another one.
    """
    rows = []
    for attn in onloaded_layers(blocks):
        for module in text_modules(attn):
            rows += [spread(values) for values in shown_values(module, dtype)]
    return torch.stack(rows) if rows else torch.zeros(0, VALUES)


def weights_version(blocks: Blocks) -> tuple[object, ...]:
    """Changes whenever what writes a prompt state is written to, moved or adapted; cheap."""
    version: list[object] = []
    for block, attentions in blocks:
        in_group = offloading_group(block) is not None
        for attn in attentions:
            hooked = in_group or hasattr(attn.to_k, "_diffusers_hook")  # hooks move weights all the time
            for module in text_modules(attn):
                for parameter in module.parameters():
                    version.append(id(parameter) if hooked else parameter.data_ptr())
                    version.append(0 if parameter.is_inference() else parameter._version)
                version += [adapters_of(layer) for layer in module.modules() if is_adapted(layer)]
    return tuple(version)


def text_modules(attn: Attention) -> tuple[nn.Module, ...]:
    return attn.to_k, attn.to_v, attn.crosswkv.text_writer


def shown_values(module: nn.Module, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    if isinstance(module, nn.Linear) or is_adapted(module):
        yield probe(module, dtype)
        return
    yield from direct_parameters(module)
    for child in module.children():
        yield from shown_values(child, dtype)


def probe(linear: Any, dtype: torch.dtype) -> torch.Tensor:
    """What a linear layer with all its adapters makes of a fixed input of ones and minus ones."""
    weight = linear.base_layer.weight if is_adapted(linear) else linear.weight
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    steps = torch.arange(1, linear.in_features + 1, dtype=torch.float64) * 0.6180339887498949
    compute = weight.dtype if weight.dtype in COMPUTE_DTYPES else dtype
    signs = torch.where(steps % 1 < 0.5, -1.0, 1.0).to(device, compute)
    modes = [(module, module.training) for module in linear.modules()]
    linear.eval()  # adapters have dropout
    with torch.autocast(device.type, enabled=False):
        values = linear(signs[None, None])
    for module, training in modes:
        module.training = training
    return values


def direct_parameters(module: nn.Module) -> Iterator[torch.Tensor]:
    """The parameters of `module` alone, fetched if they are offloaded."""
    parameters = dict(module.named_parameters(recurse=False))
    hook: Any = getattr(module, "_hf_hook", None)  # of Accelerate
    if getattr(hook, "offload", False):
        parameters = {name: hook.weights_map[name] for name in parameters}
    with onloaded(module):
        yield from parameters.values()


def spread(values: torch.Tensor) -> torch.Tensor:
    """`VALUES` evenly spaced ones of all, padded with zeros."""
    values = values.flatten()
    values = values[:: max(1, len(values) // VALUES)][:VALUES].float().cpu()
    return nn.functional.pad(values, (0, VALUES - len(values)))


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put adapters around this layer."""
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")


def adapters_of(layer: Any) -> tuple[object, ...]:
    scaling = tuple((name, round(scale, 6)) for name, scale in getattr(layer, "scaling", {}).items())
    return tuple(layer.active_adapters), tuple(layer.merged_adapters), layer.disable_adapters, scaling
