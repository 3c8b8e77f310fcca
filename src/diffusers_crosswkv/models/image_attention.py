"""IP-Adapter: image prompts beside CrossWKV, through the stock adapters' own keys and values."""

from collections.abc import Sequence
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import (
    Attention,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
)
from torch import nn

from .attention_processor import PreparedText, attend

STOCK_PROCESSORS = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)


class CrossWKVIPAdapterAttnProcessor(IPAdapterAttnProcessor2_0):
    """CrossWKV reads the text, and softmax attention looks at the image prompts; both are added before `to_out`.

    The query of the image prompts is the output of `to_q`, before CrossWKV's feature map. Made by
    [`CrossWKVIPAdapterAttnProcessor.of`] whenever a stock processor of an IP-Adapter is set on a layer.
    """

    @classmethod
    def of(cls, processor: nn.Module, attn: Attention) -> "CrossWKVIPAdapterAttnProcessor":
        """The same adapter, its weights shared with the stock `processor`, for a layer with CrossWKV.

        Raises:
            ValueError: what the adapter sees cannot be added to what CrossWKV reads.
        """
        layer = attn.crosswkv
        if layer.fusion == "paper":
            raise ValueError(
                "An IP-Adapter needs `crosswkv_fusion` 'state' or 'prefix', got 'paper': there an image token has no "
                "query."
            )
        if layer.value_dim != layer.hidden_size or layer.hidden_size % attn.heads:
            raise ValueError(
                "An IP-Adapter needs values as wide as the image tokens, and a width that its heads divide: "
                f"`crosswkv_value_dim` None or {layer.hidden_size}, got {layer.value_dim}, and {attn.heads} heads."
            )
        ours = cls.__new__(cls)
        nn.Module.__init__(ours)
        for name in ("hidden_size", "cross_attention_dim", "num_tokens", "scale", "to_k_ip", "to_v_ip"):
            setattr(ours, name, getattr(processor, name))
        return ours

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: PreparedText | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        scale: float = 1.0,
        ip_adapter_masks: Sequence[torch.Tensor | None] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        look = None
        if isinstance(encoder_hidden_states, PreparedText):
            masks = self._checked_masks(ip_adapter_masks, encoder_hidden_states.image_tokens)
            look = partial(self.look, attn, encoder_hidden_states.image_tokens, masks)
        return attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb, look)

    def look(
        self,
        attn: Attention,
        image_tokens: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor | None],
        hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        """What the image tokens `[B, T, D]` see of all image prompts, `[B, T, D]`."""
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        seen = torch.zeros_like(hidden_states)
        adapters = zip(image_tokens, self.scale, self.to_k_ip, self.to_v_ip, masks, strict=True)
        for tokens, scale, to_k, to_v, mask in adapters:
            tokens = tokens.to(hidden_states.device)
            if mask is None:
                parts = [(tokens.flatten(1, 2), scale)]
            else:
                scales = scale if isinstance(scale, list) else [scale] * mask.shape[1]
                parts = list(zip(tokens.unbind(1), scales, strict=True))
            for i, (image, weight) in enumerate(parts):
                if weight == 0:
                    continue
                key, value = (split_heads(x, attn.heads) for x in (to_k(image), to_v(image)))
                part = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
                if mask is not None:
                    part = part * IPAdapterMaskProcessor.downsample(mask[:, i], *part.shape).to(part)
                seen = seen + weight * part
        return seen

    def _checked_masks(self, masks, image_tokens: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        if masks is None:
            if any(isinstance(scale, list) for scale in self.scale):
                raise ValueError(f"A scale per image prompt needs `ip_adapter_masks`, got none for {self.scale}.")
            return list(repeat(None, len(image_tokens)))
        masks = list(masks.unsqueeze(1)) if isinstance(masks, torch.Tensor) else list(masks)
        if not len(masks) == len(self.scale) == len(image_tokens):
            raise ValueError(
                f"`ip_adapter_masks` must hold one entry per IP-Adapter, got {len(masks)} for {len(self.scale)} "
                f"adapters and {len(image_tokens)} image prompts."
            )
        for mask, scale, tokens in zip(masks, self.scale, image_tokens, strict=True):
            images = tokens.shape[1]
            if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape[:-2] != (1, images)):
                got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise ValueError(
                    f"Each mask must be [1, {images} image prompts, height, width], got {got}; "
                    "`IPAdapterMaskProcessor` makes them."
                )
            if isinstance(scale, list) and len(scale) != images:
                raise ValueError(f"There must be one scale per image prompt, got {len(scale)} for {images}.")
        return masks


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """`[B, T, D]` to `[B, heads, T, D / heads]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
