"""The stateless step between Diffusers' attention call and the CrossWKV module that sits on the Attention."""

from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging

from .crosswkv import attend_alone, check_text

logger = logging.get_logger(__name__)


class PreparedText(NamedTuple):
    """What a U-Net computed from the prompt before its blocks run; it travels in the place of `encoder_hidden_states`.

    `first_values` collects, while the blocks run, the image value of the first layer of each group. It lives as long
    as one forward and is never cleared, so that a checkpointed block finds in it what it found at first.
    """

    states: tuple[torch.Tensor, ...]  # per layer [B, H, V, K]; empty in `paper` fusion
    receptances: tuple[torch.Tensor, ...]  # per layer [B, L, H, K]; empty but in `paper` fusion
    first_values: dict[int, torch.Tensor]  # group -> [B, T, D_v]


class CrossWKVAttnProcessor:
    """Runs the `CrossWKV` module registered as `attn.crosswkv` with the projections of `attn`.

    It holds nothing: one instance may serve all layers. With a `DIR7UNet2DConditionModel`, `encoder_hidden_states` is
    the [`PreparedText`] of all layers. A plain tensor `[B, L, D_q]` works for layers that need no value of another
    one; `attention_mask` is then the additive bias `[B, 1, L]` that Diffusers makes of a mask, or boolean.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: PreparedText | torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        spatial_shape = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if spatial_shape is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        if isinstance(encoder_hidden_states, PreparedText):
            hidden_states = attend_prepared(attn, hidden_states, encoder_hidden_states)
        elif isinstance(encoder_hidden_states, torch.Tensor):
            text, mask = encoder_hidden_states, attention_mask
            if mask is not None:
                mask = (mask > -1 if mask.is_floating_point() else mask.bool()).reshape(text.shape[0], -1)
            check_text(text, mask, attn.crosswkv.cross_attention_dim)
            hidden_states = attend_alone(attn.crosswkv, attn, hidden_states, text, mask)
        else:
            raise ValueError(
                "CrossWKV needs `encoder_hidden_states`, text tokens [B, L, D_q], got "
                f"{type(encoder_hidden_states).__name__}; for self-attention use a stock processor."
            )

        if spatial_shape is not None:
            hidden_states = hidden_states.transpose(1, 2).unflatten(2, spatial_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        factor = attn.rescale_output_factor
        return hidden_states if factor == 1 else hidden_states / factor


class CrossWKVAttention(Attention):
    """An Attention that stays CrossWKV: calls that replace the processors of a whole U-Net pass it by."""

    def set_processor(self, processor) -> None:
        if isinstance(processor, CrossWKVAttnProcessor):
            super().set_processor(processor)
        else:
            logger.info(f"{type(processor).__name__} does not replace CrossWKVAttnProcessor.")


def attend_prepared(attn: Attention, hidden_states: torch.Tensor, text: PreparedText) -> torch.Tensor:
    """`[B, T, D]` to `[B, T, D]` with what the U-Net prepared for this layer."""
    layer = attn.crosswkv
    if layer.fusion == "state":
        return layer.read(attn, hidden_states, text.states[layer.layer_index])
    if layer.fusion == "prefix":
        source = {"initial_state": text.states[layer.layer_index]}
    else:
        source = {"receptance": text.receptances[layer.layer_index]}
    first_value = None if layer.first_in_group else text.first_values[layer.group]
    output, value = layer.scan_image(attn, hidden_states, first_value=first_value, **source)
    if layer.first_in_group:
        text.first_values[layer.group] = value
    return output
