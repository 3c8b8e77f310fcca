"""UNet2DConditionModel with CrossWKV in the place of softmax cross-attention."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from crosswkv_kernels import Write
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .attention_processor import CrossWKVAttention, CrossWKVAttnProcessor, PreparedText
from .crosswkv import CrossWKV, check_sizes, check_text, previous_tokens
from .prompt_state import PromptState, PromptStateSpec
from .text_scan import backward_transitions, pass_earlier_text, scan_text, start_of_continuation

FINGERPRINT_VALUES = 16


class Prompt(NamedTuple):
    """The prompt on its way through the parent's forward, until `process_encoder_hidden_states` prepares it."""

    text: torch.Tensor | None
    mask: torch.Tensor | None
    state: PromptState | None


def with_unet_arguments(init):
    """Give `init` the signature of UNet2DConditionModel plus its own keywords: Diffusers reads the config from it."""
    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
    init.__signature__ = inspect.Signature([*stock.values(), *own])
    return init


class DIR7UNet2DConditionModel(UNet2DConditionModel):
    """The U-Net of DIR-7: all of `UNet2DConditionModel`, its cross-attention replaced by CrossWKV.

    Every argument of the stock class keeps its meaning. Added:

    Args:
        crosswkv_fusion: `state` (default), `prefix` or `paper`; see [`CrossWKV`].
        crosswkv_head_dim: K, numbers per head of receptance and key; must divide the width of every block that has
            cross-attention. It is independent of `attention_head_dim`, which in this config means the *number* of
            heads, and serves self-attention alone.
        crosswkv_value_dim: D_v, width of the values, one for all blocks or one per down block; the block's if None.
        crosswkv_decay_rank, crosswkv_in_context_lr_rank, crosswkv_gate_rank, crosswkv_value_rank:
            ranks of the LoRAs (equations 8 to 10); 0 leaves one out, but for the gate's.
        crosswkv_feature_map: what keys and receptances pass through, `silu` or `identity`; None is `identity` in
            `paper` fusion and `silu` in the others.
        crosswkv_output_norm: normalise what is read from the state, per head (equation 14); None is off in `state`
            fusion and on in the others.
        crosswkv_bidirectional: in every layer half of the heads scan the text from its end.

    Raises:
        ValueError: sizes that do not divide, an unknown fusion, or blocks without a separate cross-attention.
    """

    prompt_state_class = PromptState  # what pipelines and other code that is loaded apart check for

    @register_to_config
    @with_unet_arguments
    def __init__(
        self,
        *args,
        crosswkv_fusion: str = "state",
        crosswkv_head_dim: int = 64,
        crosswkv_value_dim: int | tuple[int, ...] | None = None,
        crosswkv_decay_rank: int = 64,
        crosswkv_in_context_lr_rank: int = 64,
        crosswkv_gate_rank: int = 128,
        crosswkv_value_rank: int = 16,
        crosswkv_feature_map: str | None = None,
        crosswkv_output_norm: bool | None = None,
        crosswkv_bidirectional: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        options = {
            "head_dim": crosswkv_head_dim,
            "fusion": crosswkv_fusion,
            "decay_rank": crosswkv_decay_rank,
            "in_context_lr_rank": crosswkv_in_context_lr_rank,
            "gate_rank": crosswkv_gate_rank,
            "value_rank": crosswkv_value_rank,
            "feature_map": crosswkv_feature_map,
            "output_norm": crosswkv_output_norm,
            "bidirectional": crosswkv_bidirectional,
        }
        layers = list(cross_attentions(self))
        value_dims = [value_dim_of(crosswkv_value_dim, level, len(self.down_blocks)) for _, _, level in layers]
        groups: list[tuple] = []
        for (name, attn, level), value_dim in zip(layers, value_dims, strict=True):
            check_layer(name, attn, value_dim, crosswkv_head_dim, crosswkv_fusion)
            width = value_dim or attn.query_dim
            groups.append((width,) if crosswkv_fusion == "state" else (width, level))
        self._crosswkv_attentions = tuple(attn for _, attn, _ in layers)
        for i, (attn, value_dim, group) in enumerate(zip(self._crosswkv_attentions, value_dims, groups, strict=True)):
            first = groups.index(group)
            place = {"layer_index": i, "num_layers": len(layers), "group": first, "first_in_group": first == i}
            install_crosswkv(attn, value_dim, options | place)

    @torch.no_grad()
    def fingerprint(self) -> torch.Tensor:
        """`[parameters, n]`: some values of everything that writes a prompt state, to tell models apart.

        Empty while weights are offloaded or quantized.
        """
        rows = []
        for parameter in self._text_parameters():
            if parameter.device.type == "meta" or not parameter.is_floating_point():
                return torch.zeros(0, FINGERPRINT_VALUES)
            values = parameter.flatten()
            values = values[:: max(1, len(values) // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES].float().cpu()
            rows.append(torch.nn.functional.pad(values, (0, FINGERPRINT_VALUES - len(values))))
        return torch.stack(rows) if rows else torch.zeros(0, FINGERPRINT_VALUES)

    def weights_version(self) -> tuple[int, ...]:
        """Changes whenever what writes a prompt state is moved or written to."""
        return tuple(
            number
            for parameter in self._text_parameters()
            for number in (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        )

    def _text_parameters(self) -> Iterator[nn.Parameter]:
        for attn in self._crosswkv_attentions:
            for module in (attn.to_k, attn.to_v, attn.crosswkv.text_writer):
                yield from module.parameters()

    def prompt_state_spec(self) -> PromptStateSpec:
        """What a prompt state of this model must look like."""
        layers = [attn.crosswkv for attn in self._crosswkv_attentions]
        if not layers:
            raise ValueError("A prompt state needs cross-attention, and this U-Net has none; see `down_block_types`.")
        shapes = tuple((layer.num_heads, layer.value_dim // layer.num_heads, layer.head_dim) for layer in layers)
        backward_heads = tuple(layer.backward_heads for layer in layers)
        return PromptStateSpec(self.config.crosswkv_fusion, shapes, backward_heads, layers[0].cross_attention_dim)

    @apply_forward_hook
    def encode_prompt(
        self,
        prompt_embeds: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        prompt_state: PromptState | None = None,
    ) -> PromptState:
        """Scan the text once, for every pixel of every denoising step.

        Args:
            prompt_embeds: `[B, L, D_q]`, the text encoder's hidden states, L >= 1.
            encoder_attention_mask: `[B, L]`, 1 = keep; masked tokens count as deleted.
            prompt_state: the state of the text that this one continues; encoding A, then B from A's state, equals
                encoding A + B.

        Returns:
            [`PromptState`] of constant size, states in float32. Gradients flow through it.

        Raises:
            ValueError: shapes do not fit, the input is not finite, the state was made for another model, or the
                fusion is `paper`, whose state is written by the image.
        """
        if self.config.crosswkv_fusion == "paper":
            raise ValueError(
                "A prompt state needs `crosswkv_fusion` 'state' or 'prefix', got 'paper': there the image writes the "
                "state and the text only reads it. Pass `prompt_embeds` to the U-Net instead."
            )
        self.prompt_state_spec()
        self._check_prompt(prompt_embeds, encoder_attention_mask, prompt_state, len(prompt_embeds))
        if not torch.compiler.is_compiling() and not prompt_embeds.isfinite().all():
            raise ValueError("`prompt_embeds` must be finite, got NaN or Inf; check the text encoder and its dtype.")
        text = super().process_encoder_hidden_states(prompt_embeds, {})
        last_token = None if prompt_state is None else prompt_state.last_token
        writes, last_token = self._write_text(text, as_mask(encoder_attention_mask), last_token)
        heads = [attn.crosswkv.backward_heads for attn in self._crosswkv_attentions]
        transitions = [backward_transitions(write, count) for write, count in zip(writes, heads, strict=True)]
        if prompt_state is not None:
            transitions = [new @ old.to(new) for new, old in zip(transitions, prompt_state.transitions, strict=True)]
        states = self._scan_text(writes, prompt_state)
        states = tuple(state.clone() for state in states)  # of their own, not parts of the joined scan
        return PromptState(
            states, tuple(transitions), last_token.clone(), self.config.crosswkv_fusion, self.fingerprint()
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: tuple[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple:
        """Predict from a noisy sample, as `UNet2DConditionModel.forward` does; its arguments, and one more way in.

        With `cross_attention_kwargs={"prompt_state": state}` the layers read the state and scan no text;
        `encoder_hidden_states` may then be None. The state's batch must be the sample's.

        Args:
            sample: `[B, C, height, width]`.
            timestep: one for all, or `[B]`.
            encoder_hidden_states: `[B, L, D_q]`.
            encoder_attention_mask: `[B, L]`, 1 = keep; masked tokens count as deleted.

        Raises:
            ValueError: the text's shape or the prompt state does not fit.
        """
        cross_attention_kwargs = dict(cross_attention_kwargs or {})
        prompt_state = cross_attention_kwargs.pop("prompt_state", None)
        prompt = Prompt(encoder_hidden_states, encoder_attention_mask, prompt_state)
        if self._crosswkv_attentions:
            self._check_prompt(*prompt, len(sample), reading=prompt_state is not None)
        return super().forward(
            sample,
            timestep,
            prompt,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs or None,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            down_intrablock_additional_residuals=down_intrablock_additional_residuals,
            return_dict=return_dict,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in Diffusers.

        Raises:
            ValueError: the weights are those of a stock U-Net, without the parameters of CrossWKV.
        """
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        missing = [name for name in info["missing_keys"] if ".crosswkv." in name]
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} must hold a DIR7UNet2DConditionModel, but {len(missing)} parameters "
                f"of CrossWKV are missing ({missing[0]}, ...): these are weights of a stock U-Net. Load them with "
                "UNet2DConditionModel; they cannot be used here without conversion."
            )
        return (model, info) if with_info else model

    def set_default_attn_processor(self) -> None:
        """Stock self-attention; cross-attention stays CrossWKV."""
        self.set_attn_processor(AttnProcessor())

    def get_aug_embed(self, emb, encoder_hidden_states, added_cond_kwargs):
        if isinstance(encoder_hidden_states, Prompt):
            encoder_hidden_states = encoder_hidden_states.text
        return super().get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)

    def process_encoder_hidden_states(self, encoder_hidden_states, added_cond_kwargs):
        if not isinstance(encoder_hidden_states, Prompt):
            return super().process_encoder_hidden_states(encoder_hidden_states, added_cond_kwargs)
        text, mask, prompt_state = encoder_hidden_states
        if prompt_state is not None:
            return PreparedText(prompt_state.states, (), {})
        text, mask = super().process_encoder_hidden_states(text, added_cond_kwargs), as_mask(mask)
        if self.config.crosswkv_fusion == "paper":
            return PreparedText((), self._text_receptances(text, mask), {})
        return PreparedText(self._scan_text(self._write_text(text, mask)[0]), (), {})

    def _check_prompt(self, text, mask, prompt_state, batch_size: int, reading: bool = False) -> None:
        if prompt_state is not None:
            if not isinstance(prompt_state, PromptState):
                raise ValueError(f"`prompt_state` must be a PromptState, got {type(prompt_state).__name__}.")
            prompt_state.check(self, self.prompt_state_spec(), batch_size)
        if reading:
            return
        if not isinstance(text, torch.Tensor):
            raise ValueError(
                "`encoder_hidden_states` must be text tokens [B, L, D_q] unless a prompt state is given "
                f"(cross_attention_kwargs={{'prompt_state': state}}), got {type(text).__name__}."
            )
        check_text(
            text, mask, self.config.encoder_hid_dim or self._crosswkv_attentions[0].crosswkv.cross_attention_dim
        )
        if len(text) != batch_size:
            raise ValueError(
                f"`encoder_hidden_states` must hold one prompt per sample, got {len(text)} and {batch_size}."
            )

    def _write_text(
        self, text: torch.Tensor, mask: torch.Tensor | None, last_token: torch.Tensor | None = None
    ) -> tuple[list[Write], torch.Tensor]:
        """What the text writes into each layer, and its last token `[B, D_q]`; it follows `last_token`, if any."""
        previous, next_last_token = previous_tokens(text, mask, last_token)
        first_values: dict[int, torch.Tensor] = {}
        writes = []
        for attn in self._crosswkv_attentions:
            layer = attn.crosswkv
            write, value = layer.write_text(attn, text, previous, mask, first_values.get(layer.group))
            first_values.setdefault(layer.group, value)
            writes.append(write)
        return writes, next_last_token

    def _scan_text(self, writes: list[Write], prompt_state: PromptState | None = None) -> tuple[torch.Tensor, ...]:
        """The states of all layers, `[B, H, V, K]` each.

        Heads are independent, so one scan serves all layers whose heads have one size.
        """
        layers = [attn.crosswkv for attn in self._crosswkv_attentions]
        scans: dict[tuple[int, int], list[int]] = {}
        for i, write in enumerate(writes):
            scans.setdefault((write.v.shape[-1], write.k.shape[-1]), []).append(i)
        states: dict[int, torch.Tensor] = {}
        for numbers in scans.values():
            joined = Write(*(torch.cat(parts, dim=2) for parts in zip(*(writes[i] for i in numbers), strict=True)))
            start = None
            if prompt_state is not None:
                starts = [start_of_continuation(prompt_state.states[i], layers[i].backward_heads) for i in numbers]
                start = torch.cat(starts, dim=1)
            parts = scan_text(joined, start).split([layers[i].num_heads for i in numbers], dim=1)
            states |= dict(zip(numbers, parts, strict=True))
        in_order = tuple(states[i] for i in range(len(states)))
        if prompt_state is None:
            return in_order
        earlier = zip(in_order, prompt_state.states, prompt_state.transitions, strict=True)
        return tuple(pass_earlier_text(*parts) for parts in earlier)

    def _text_receptances(self, text: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return tuple(attn.crosswkv.receptance_of_text(attn, text, mask) for attn in self._crosswkv_attentions)


def cross_attentions(unet: UNet2DConditionModel) -> Iterator[tuple[str, Attention, int]]:
    """Name, module and level (0 = full resolution) of the cross-attentions, in the order in which they run."""
    levels = len(unet.down_blocks)
    blocks = [(f"down_blocks.{i}", block, i) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block, levels - 1)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block, levels - 1 - i) for i, block in enumerate(unet.up_blocks)]
    for block_name, block, level in blocks:
        for name, module in block.named_modules():
            if isinstance(module, Attention) and module.is_cross_attention:
                yield f"{block_name}.{name}", module, level


def value_dim_of(value_dim: int | Sequence[int] | None, level: int, levels: int) -> int | None:
    if isinstance(value_dim, Sequence) and len(value_dim) != levels:
        raise ValueError(f"`crosswkv_value_dim` must be one or one per down block, got {value_dim} for {levels}.")
    return value_dim[level] if isinstance(value_dim, Sequence) else value_dim


def check_layer(name: str, attn: Attention, value_dim: int | None, head_dim: int, fusion: str) -> None:
    if attn.added_kv_proj_dim is not None:
        raise ValueError(
            f"CrossWKV replaces a cross-attention of its own, but {name} attends to text and image at once; "
            "use CrossAttnDownBlock2D, UNetMidBlock2DCrossAttn and CrossAttnUpBlock2D, not the SimpleCrossAttn blocks."
        )
    if attn.norm_cross is not None:
        raise ValueError(f"CrossWKV takes no `cross_attention_norm`, but {name} has one; use blocks without it.")
    try:
        check_sizes(attn.query_dim, head_dim, value_dim or attn.query_dim, fusion)
    except ValueError as error:
        raise ValueError(f"{name}: {error} (In the config the names begin with `crosswkv_`.)") from error


def install_crosswkv(attn: Attention, value_dim: int | None, options: dict[str, Any]) -> None:
    """Register a CrossWKV module on `attn`, and rebuild those of its projections that need another shape."""
    layer = CrossWKV(attn.query_dim, attn.cross_attention_dim, value_dim=value_dim, own_projections=False, **options)
    for name, (in_features, out_features, bias) in layer.projection_sizes().items():
        linear = attn.to_out[0] if name == "to_out" else getattr(attn, name)
        if (linear.in_features, linear.out_features) == (in_features, out_features):
            continue
        linear = nn.Linear(in_features, out_features, bias=bias)
        if name == "to_out":
            attn.to_out[0] = linear
        else:
            setattr(attn, name, linear)
    attn.crosswkv = layer
    attn.__class__ = CrossWKVAttention  # the parent's blocks have built a stock Attention
    attn.set_processor(CrossWKVAttnProcessor())


def as_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.bool()
