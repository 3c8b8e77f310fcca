"""What a denoising step of a whole U-Net costs as the prompt grows: a prompt state beside softmax cross-attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from ..models import DIR7UNet2DConditionModel
from ..presets import load_preset
from .kernel_benchmark import SECONDS, BenchmarkConfig, significant
from .kernel_cases import relative_rms
from .kernel_rows import Row, RowFile, about
from .kernel_timing import PEAK_MEMORY_BY, Stopwatch, interleaved, peak_memory

BATCH_SIZE = 2  # one image with guidance
LENGTHS = (16, 77, 256, 1024, 4096)
PRESETS = ("dir7_tiny", "dir7_s")
QUICK_LENGTHS = (16, 256)
QUICK_PRESETS = ("dir7_tiny",)
SOFTMAX, READ, SCAN, ENCODE = "softmax", "state, read", "state, scanned in the step", "state, encode once"


@dataclass(frozen=True)
class UNets:
    """The U-Net of a preset, and the stock U-Net of the same config."""

    name: str
    crosswkv: DIR7UNet2DConditionModel
    softmax: UNet2DConditionModel

    @classmethod
    def make(cls, name: str, device: torch.device, dtype: torch.dtype) -> "UNets":
        preset = load_preset(name)
        stock = {key: value for key, value in preset.items() if not key.startswith(("_", "crosswkv_"))}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            models = (DIR7UNet2DConditionModel.from_config(preset), UNet2DConditionModel(**stock))
        for model in models:
            nn.Module.to(model, device, dtype)  # that of Diffusers warns of every cast
        crosswkv, softmax = (model.eval().requires_grad_(False) for model in models)
        return cls(name, crosswkv, softmax)


@dataclass(frozen=True)
class Sides:
    """The calls that are compared at one prompt length, and what they need to know of the prompt at each step."""

    calls: dict[str, Callable[[], Any]]
    prompt_bytes: dict[str, int]


def sides_of(unets: UNets, length: int) -> Sides:
    """All sides see the same latents and the same text, which is random: times do not depend on values."""
    model = unets.crosswkv
    config, place = model.config, {"device": model.device, "dtype": model.dtype}
    sample = torch.randn(BATCH_SIZE, config.in_channels, config.sample_size, config.sample_size, **place)
    text = torch.randn(BATCH_SIZE, length, config.cross_attention_dim, **place)
    timestep = torch.tensor(500, device=model.device)
    state = model.encode_prompt(text)
    calls = {
        SOFTMAX: lambda: unets.softmax(sample, timestep, text).sample,
        READ: lambda: model(sample, timestep, None, cross_attention_kwargs={"prompt_state": state}).sample,
        SCAN: lambda: model(sample, timestep, text).sample,
        ENCODE: lambda: model.encode_prompt(text),
    }
    attentions = [module for module in unets.softmax.modules() if isinstance(module, Attention)]
    widths = [2 * attn.inner_dim for attn in attentions if attn.is_cross_attention]
    keys_and_values = BATCH_SIZE * length * sum(widths) * text.element_size()
    return Sides(calls, {SOFTMAX: keys_and_values, READ: state.nbytes})


@torch.inference_mode()
def measure(config: BenchmarkConfig, progress: Callable[[str], object] = print) -> list[Row]:
    """Measure and write the rows of this machine, `config.rows_path`; rows of others in that file are kept.

    All lengths and sides of a U-Net take turns, so that lengths can be compared with each other too.
    """
    device, dtype = config.torch_device, config.torch_dtype
    lengths = QUICK_LENGTHS if config.quick else LENGTHS
    presets = QUICK_PRESETS if config.quick else PRESETS
    stopwatch, this_run = Stopwatch(device), about(device, dtype) | {"rounds": config.rounds}
    seconds = (config.seconds or SECONDS[device.type]) / len(presets)
    rows: list[Row] = []
    for name in presets:
        progress(f"{name}: {', '.join(map(str, lengths))} text tokens")
        unets = UNets.make(name, device, dtype)
        by_length = {length: sides_of(unets, length) for length in lengths}
        calls = {f"{side}/{length}": call for length, of in by_length.items() for side, call in of.calls.items()}
        for call in calls.values():  # warm up
            stopwatch(call)
        timings = interleaved(calls, stopwatch, config.rounds, seconds / len(calls))
        for length, of in by_length.items():
            for side, call in of.calls.items():
                row = this_run | shape_of(unets, length) | {"implementation": side}
                row |= {key: significant(value) for key, value in timings[f"{side}/{length}"]._asdict().items()}
                rows.append(row | untimed(of, side, call, device))
    RowFile(config.rows_path).put(rows)
    return rows


def untimed(of: Sides, side: str, call: Callable[[], Any], device: torch.device) -> Row:
    """The rest of a row."""
    row: Row = {"peak_bytes": peak_memory(call, device), "peak_bytes_by": PEAK_MEMORY_BY[device.type]}
    if side in of.prompt_bytes:
        row["prompt_bytes"] = of.prompt_bytes[side]
    if side == READ:
        row["error"] = significant(relative_rms(call(), of.calls[SCAN]()))
        row["error_at"] = "output; the same U-Net called with the text"
    return row


def shape_of(unets: UNets, length: int) -> Row:
    """The names are those of the kernel benchmark's rows."""
    return {
        "kind": unets.name,
        "direction": "forward",
        "batch": BATCH_SIZE,
        "width": None,
        "tokens": unets.crosswkv.config.sample_size**2,
        "text_tokens": length,
    }
