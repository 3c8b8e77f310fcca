"""CrossWKV takes the place of cross-attention in a U-Net that Diffusers has built."""

from collections.abc import Iterator, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.utils import logging
from torch import nn

from .attention_processor import CrossWKVAttnProcessor, PreparedText
from .crosswkv import CrossWKV, check_sizes, feature_map_of
from .image_attention import STOCK_PROCESSORS, CrossWKVIPAdapterAttnProcessor

logger = logging.get_logger(__name__)


class CrossWKVAttention(Attention):
    """An Attention that stays CrossWKV: calls that replace the processors of a whole U-Net pass it by.

    The processors of IP-Adapters are turned into such that leave the text to CrossWKV, and stock softmax processors,
    which is what unloading an IP-Adapter sets, into a plain [`CrossWKVAttnProcessor`].
    """

    def set_processor(self, processor) -> None:
        ours = (CrossWKVAttnProcessor, CrossWKVIPAdapterAttnProcessor)
        if isinstance(processor, STOCK_PROCESSORS) and not isinstance(processor, ours):
            processor = CrossWKVIPAdapterAttnProcessor.of(processor, self)
        elif isinstance(processor, AttnProcessor | AttnProcessor2_0):
            processor = CrossWKVAttnProcessor()
        if isinstance(processor, ours):
            super().set_processor(processor)
        else:
            logger.info(f"{type(processor).__name__} does not replace {type(self.processor).__name__}.")

    def fuse_projections(self, fuse: bool = True) -> None:
        """Nothing: `to_k` and `to_v` are applied to different mixes of the tokens."""


class CrossWKVTransformerBlock(BasicTransformerBlock):
    """A transformer block that takes its own layers' part of a [`PreparedText`]."""

    first_layer: int  # of all layers of the U-Net, in the order of execution
    layer_count: int

    def __call__(self, hidden_states, attention_mask=None, encoder_hidden_states=None, *args, **kwargs):
        if isinstance(encoder_hidden_states, PreparedText):
            encoder_hidden_states = encoder_hidden_states.of_layers(self.first_layer, self.layer_count)
        return super().__call__(hidden_states, attention_mask, encoder_hidden_states, *args, **kwargs)


def install_layers(
    unet: UNet2DConditionModel, value_dim: int | Sequence[int] | None, options: dict[str, Any]
) -> tuple[tuple[nn.Module, tuple[Attention, ...]], ...]:
    """Replace every cross-attention; returns the U-Net's blocks and their layers, in the order of execution.

    Raises:
        ValueError: sizes that do not divide, or a cross-attention that CrossWKV cannot replace.
    """
    found = list(cross_attentions(unet))
    if any(isinstance(module, DualTransformer2DModel) for module in unet.modules()):
        raise ValueError(
            "CrossWKV scans one text, got `dual_cross_attention=True`, which cuts the text in two; leave it False."
        )
    value_dims = [value_dim_of(value_dim, level, len(unet.down_blocks)) for _, _, _, level in found]
    groups: list[tuple] = []
    for (_, name, attn, level), width in zip(found, value_dims, strict=True):
        check_layer(name, attn, width, options)
        width = width or attn.query_dim
        groups.append((width,) if options["fusion"] == "state" else (width, level))
    text_dims = {name: attn.cross_attention_dim for _, name, attn, _ in found}
    if len(set(text_dims.values())) > 1:
        raise ValueError(f"All layers read one text: `cross_attention_dim` must be one width, got {text_dims}.")
    for i, ((_, _, attn, _), width, group) in enumerate(zip(found, value_dims, groups, strict=True)):
        first = groups.index(group)
        place = {"layer_index": i, "num_layers": len(found), "group": first, "first_in_group": first == i}
        install_crosswkv(attn, width, options | place)
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            adapt_transformer_block(module)
    blocks = dict.fromkeys(block for block, _, _, _ in found)
    return tuple((block, tuple(attn for other, _, attn, _ in found if other is block)) for block in blocks)


def cross_attentions(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, str, Attention, int]]:
    """Block, name, module and level (0 = full resolution) of the cross-attentions, in the order in which they run."""
    levels = len(unet.down_blocks)
    blocks = [(f"down_blocks.{i}", block, i) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block, levels - 1)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block, levels - 1 - i) for i, block in enumerate(unet.up_blocks)]
    for block_name, block, level in blocks:
        for name, module in block.named_modules():
            if isinstance(module, Attention) and module.is_cross_attention:
                yield block, f"{block_name}.{name}", module, level


def value_dim_of(value_dim: int | Sequence[int] | None, level: int, levels: int) -> int | None:
    if isinstance(value_dim, Sequence) and len(value_dim) != levels:
        raise ValueError(f"`crosswkv_value_dim` must be one or one per down block, got {value_dim} for {levels}.")
    return value_dim[level] if isinstance(value_dim, Sequence) else value_dim


def check_layer(name: str, attn: Attention, value_dim: int | None, options: dict[str, Any]) -> None:
    if attn.added_kv_proj_dim is not None:
        raise ValueError(
            f"CrossWKV replaces a cross-attention of its own, but {name} attends to text and image at once; "
            "use CrossAttnDownBlock2D, UNetMidBlock2DCrossAttn and CrossAttnUpBlock2D, not the SimpleCrossAttn blocks."
        )
    if attn.norm_cross is not None:
        raise ValueError(f"CrossWKV takes no `cross_attention_norm`, but {name} has one; use blocks without it.")
    try:
        feature_map = feature_map_of(options["fusion"], options.get("feature_map"))
        check_sizes(attn.query_dim, options["head_dim"], value_dim or attn.query_dim, feature_map)
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


def adapt_transformer_block(block: BasicTransformerBlock) -> None:
    """Let `block` take its layers' part of the prepared text: attn2, and attn1 with `only_cross_attention`."""
    layers = [attn.crosswkv for attn in (block.attn1, block.attn2) if isinstance(attn, CrossWKVAttention)]
    if layers:
        block.__class__ = CrossWKVTransformerBlock
        block.first_layer, block.layer_count = layers[0].layer_index, len(layers)
    for place, layer in enumerate(layers):
        layer.place_in_block = place


def remove_adapters(module: nn.Module) -> None:
    """Put the layers that PEFT has wrapped inside of `module` back in their places."""
    for child_name, child in module.named_children():
        if hasattr(child, "base_layer"):
            setattr(module, child_name, child.get_base_layer())  # type: ignore[operator]
        else:
            remove_adapters(child)
