"""The stateless step between Diffusers' attention call and the CrossWKV module that sits on the Attention."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention

from .crosswkv import apply_out, check_text, read_alone


class FirstValues:
    """The image's value in the first layer of each group, collected while the blocks of one forward run.

    Never cleared, so that a checkpointed block finds in it what it found at first; and no mapping, for hooks that move
    arguments between devices hand mappings on as copies.
    """

    def __init__(self) -> None:
        self.of_group: dict[int, torch.Tensor] = {}  # [B, T, D_v]


class PreparedText(NamedTuple):
    """What a U-Net computed from the prompt before its blocks run; it travels in the place of `encoder_hidden_states`.

    A block gets the part of its own layers (see `CrossWKVTransformerBlock`), so that all blocks of one size are alike
    to a compiler.
    """

    states: tuple[torch.Tensor, ...]  # per layer [B, H, V, K]; empty in `paper` fusion
    receptances: tuple[torch.Tensor, ...]  # per layer [B, L, H, K]; empty but in `paper` fusion
    first_values: FirstValues
    image_tokens: tuple[torch.Tensor, ...] = ()  # per IP-Adapter [B, images, tokens, D_q]

    def of_layers(self, start: int, count: int) -> "PreparedText":
        layers = slice(start, start + count)
        return self._replace(states=self.states[layers], receptances=self.receptances[layers])


class CrossWKVAttnProcessor:
    """Runs the `CrossWKV` module registered as `attn.crosswkv` with the projections of `attn`.

    It holds nothing: one instance may serve all layers. With a `DIR7UNet2DConditionModel`, `encoder_hidden_states` is
    the [`PreparedText`] of the layer's block. A plain tensor `[B, L, D_q]` works for layers that need no value of
    another one; `attention_mask` is then the additive bias `[B, 1, L]` that Diffusers makes of a mask, or boolean.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: PreparedText | torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def attend(
    attn: Attention,
    hidden_states: torch.Tensor,
    text: PreparedText | torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    temb: torch.Tensor | None,
    look: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """What an attention processor does: norms, reading, projection, residual.

    `look` turns the normalised image tokens `[B, T, D]` into what is added to what they read, before `to_out`.
    """
    residual = hidden_states
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    spatial_shape = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
    if spatial_shape is not None:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

    if isinstance(text, PreparedText):
        seen = read_prepared(attn, hidden_states, text)
    else:
        seen = read_tokens(attn, hidden_states, text, attention_mask)
    if look is not None:
        seen = seen + look(hidden_states)
    hidden_states = apply_out(attn, seen)

    if spatial_shape is not None:
        hidden_states = hidden_states.transpose(1, 2).unflatten(2, spatial_shape)
    if attn.residual_connection:
        hidden_states = hidden_states + residual
    factor = attn.rescale_output_factor
    return hidden_states if factor == 1 else hidden_states / factor


def read_tokens(attn: Attention, hidden_states: torch.Tensor, text, mask: torch.Tensor | None) -> torch.Tensor:
    """`[B, T, D]` to `[B, T, D_v]` from the text's tokens, for this layer alone."""
    if not isinstance(text, torch.Tensor):
        raise ValueError(
            f"CrossWKV needs `encoder_hidden_states`, text tokens [B, L, D_q], got {type(text).__name__}; for "
            "self-attention use a stock processor."
        )
    if mask is not None:
        mask = (mask > -1 if mask.is_floating_point() else mask.bool()).reshape(text.shape[0], -1)
    check_text(text, mask, attn.crosswkv.cross_attention_dim)
    return read_alone(attn.crosswkv, attn, hidden_states, text, mask)


def read_prepared(attn: Attention, hidden_states: torch.Tensor, text: PreparedText) -> torch.Tensor:
    """`[B, T, D]` to `[B, T, D_v]` with what the U-Net prepared, masks included, wherever it lies."""
    layer, device = attn.crosswkv, hidden_states.device
    place = layer.place_in_block
    if layer.fusion == "state":
        return layer.read(attn, hidden_states, text.states[place].to(device))
    if layer.fusion == "prefix":
        source = {"initial_state": text.states[place].to(device)}
    else:
        source = {"receptance": text.receptances[place].to(device)}
    values = text.first_values.of_group
    first_value = None if layer.first_in_group else values[layer.group].to(device)
    read, value = layer.scan_image(attn, hidden_states, first_value=first_value, **source)
    if layer.first_in_group:
        values[layer.group] = value
    return read
