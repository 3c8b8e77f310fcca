"""What the alignment benchmark compares, and how much of it: arms and presets."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..data.scene_splits import captions_for_tokenizer
from ..models import DIR7UNet2DConditionModel
from ..pipelines.prompt_encoding import ENDOFTEXT
from ..training import Models
from ..training.text import fit_tokenizer, make_text_encoder

NOISE_SCHEDULE = {"beta_schedule": "scaled_linear", "prediction_type": "sample"}
TOLERANCE = 0.03  # by which the numbers of parameters of two arms may differ


@dataclass(frozen=True)
class Arm:
    """One way of reading the text.

    Args:
        fusion: of CrossWKV; None is softmax cross-attention, the stock U-Net of the same config.
        options: arguments of `DIR7UNet2DConditionModel` besides.
        reads_text: off for the control that is trained without captions.
        prefix: before every caption, `<|endoftext|>` in the paper (section 4.4).
    """

    fusion: str | None
    options: dict[str, Any] = field(default_factory=dict)
    reads_text: bool = True
    prefix: str = ENDOFTEXT


# The defaults: four features of each of a head's 16 channels, and no gate.
STATE: dict[str, Any] = {"head_dim": 64, "gate_rank": 0}
MAIN_ARMS = {
    "softmax": Arm(None),
    "state": Arm("state", STATE),
    "prefix": Arm("prefix"),
    "paper": Arm("paper"),
    "no text": Arm(None, reads_text=False),
}


@dataclass(frozen=True)
class Preset:
    """The size of the benchmark.

    Args:
        resolution: of the pictures, in pixels.
        patch: pixels per side that are one position of the U-Net; its channels are `3 * patch**2`.
        unet: config of both U-Nets.
        crosswkv: config of CrossWKV's part.
        prefix: what `prefix` has instead. Its image tokens have keys and values too; with narrower ones it has as
            many parameters as the others.
        text_width, text_layers, window: of the text encoder that all arms share, the last in tokens.
        text_steps: of its training, before theirs.
        steps, batch_size, optimizer, learning_rate, ema_decay, mixed_precision: of every training.
        seeds: trainings per main arm; ablations take the first `ablation_seeds`.
        pictures: judged per split and training; `pictures_same` on the split like training.
        sampling_steps, guidance_scale: how they are drawn.
        recall_steps: of the trainings of one layer on facts.
    """

    resolution: int
    patch: int
    unet: dict[str, Any]
    crosswkv: dict[str, Any]
    prefix: dict[str, Any]
    text_width: int
    text_layers: int
    window: int
    text_steps: int
    steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    ema_decay: float
    mixed_precision: str
    seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    pictures: int
    pictures_same: int
    sampling_steps: int
    guidance_scale: float
    recall_steps: int


def build(arm: Arm, preset: Preset, seed: int, text_encoder: CLIPTextModel) -> Models:
    """The models of an arm: the shared text encoder, and an untrained U-Net.

    The seed draws the U-Net's weights, the same for all arms wherever shapes agree.
    """
    torch.manual_seed(seed)
    config = preset.unet | {
        "sample_size": preset.resolution // preset.patch,
        "in_channels": 3 * preset.patch**2,
        "out_channels": 3 * preset.patch**2,
        "cross_attention_dim": preset.text_width,
    }
    softmax_unet = unet = UNet2DConditionModel(**config)
    if arm.fusion is not None:
        of_fusion = preset.prefix if arm.fusion == "prefix" else {}
        options = {f"crosswkv_{name}": x for name, x in (preset.crosswkv | of_fusion | arm.options).items()}
        unet = DIR7UNet2DConditionModel(**config, crosswkv_fusion=arm.fusion, **options)
        start_alike(unet, softmax_unet)
    tokenizer = scene_tokenizer(preset.window)
    return Models(unet, text_encoder, tokenizer, DDPMScheduler(**NOISE_SCHEDULE), arm.prefix)


def start_alike(model: nn.Module, other: nn.Module) -> None:
    """Copy the weights of `other` wherever name and shape agree."""
    own = model.state_dict()
    for name, x in other.state_dict().items():
        if name in own and x.shape == own[name].shape:
            own[name][...] = x  # a state dict's tensors are the module's own


@cache
def scene_tokenizer(window: int) -> CLIPTokenizer:
    return fit_tokenizer(captions_for_tokenizer(), max_length=window, min_frequency=80)


def count_parameters(arm: Arm, preset: Preset) -> int:
    """Of the U-Net, which is all that an arm trains."""
    with torch.device("meta"):
        text_encoder = make_text_encoder(scene_tokenizer(preset.window), preset.text_width, preset.text_layers)
        return sum(p.numel() for p in build(arm, preset, 0, text_encoder).unet.parameters())
