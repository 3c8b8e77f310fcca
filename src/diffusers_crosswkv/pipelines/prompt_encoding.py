"""From prompts, in any of their forms, to what the U-Net reads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import logging
from diffusers.utils.peft_utils import scale_lora_layers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models import DIR7UNet2DConditionModel, PromptState
from ..models.text_windows import encode_windows, split_texts
from .checks import check_cross_attention_kwargs, check_unicode
from .prompts import Condition, PromptInput, expansion

logger = logging.get_logger(__name__)

ENDOFTEXT = "<|endoftext|>"


class PromptEncodingMixin:
    """The half of [`DIR7Pipeline`] that encodes: prompts of any length, embeddings, prompt states, or a mixture."""

    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    unet: DIR7UNet2DConditionModel
    config: Any
    clip_skip: int | None
    do_classifier_free_guidance: bool
    maybe_convert_prompt: Callable[[list[str], PreTrainedTokenizerBase], list[str]]
    _execution_device: torch.device

    def prompt_windows(self, prompt: str) -> list[list[int]]:
        """Token ids of the windows in which `prompt` is encoded, special tokens included.

        A prompt that the text encoder reads at once has one window. No window is left out, whatever their number.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"`prompt` must be one string, got {type(prompt).__name__}; call once per prompt.")
        check_unicode("prompt", prompt)
        return self._windows([prompt])[0]

    def _windows(self, prompts: Sequence[str]) -> list[list[list[int]]]:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "A prompt needs `text_encoder` and `tokenizer`, and this pipeline has none; pass prompt states or "
                "embeddings, the negative ones too (or guidance_scale=1)."
            )
        texts = self.maybe_convert_prompt(list(prompts), self.tokenizer)  # tokens of textual inversion
        prefix = ENDOFTEXT if self.config.prepend_endoftext else ""
        return split_texts(self.text_encoder, self.tokenizer, [prefix + text for text in texts])

    def _encode_texts(self, prompt: str | Sequence[str], clip_skip: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `[B, L, D_q]` and their mask `[B, L]`."""
        windows = self._windows([prompt] if isinstance(prompt, str) else prompt)
        longest = max(windows, key=len)
        if len(longest) > 1:
            logger.warning(
                f"A prompt of {sum(map(len, longest))} tokens is read in {len(longest)} windows of at most "
                f"{max(map(len, longest))}: all of it counts, but the text encoder sees one window at a time."
            )
        return encode_windows(self.text_encoder, self.tokenizer, windows, self._execution_device, clip_skip)

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The text encoder's hidden states and masks, a row per image.

        Arguments as in `StableDiffusionPipeline.encode_prompt`. A prompt that is longer than the text encoder's
        window is encoded in windows; nothing is cut off.

        Returns:
            `prompt_embeds` `[B, L, D_q]`, their mask `[B, L]` (1 = keep), and the same of the negative prompt, or None
            for both without guidance.
        """
        sides = [PromptInput("prompt", prompt, prompt_embeds, prompt_attention_mask)]
        if do_classifier_free_guidance:
            negative = PromptInput(
                "negative_prompt", negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask
            )
            sides.append(negative.or_empty())
        for side in sides:
            side.check(self.unet)
        results: list[torch.Tensor | None] = []
        with self._lora_scaled({} if lora_scale is None else {"scale": lora_scale}):
            for side in sides:
                embeds, mask = self._embeds_of(side, clip_skip)
                if embeds is None:
                    raise ValueError("`prompt` or `prompt_embeds` must be given, got neither.")
                rows = expansion(len(embeds), len(sides[0]), num_images_per_prompt)
                results += [x[rows].to(device or x.device) for x in (embeds, mask)]
        return (*results, *[None] * (4 - len(results)))  # type: ignore[return-value]

    def _embeds_of(self, side: PromptInput, clip_skip: int | None):
        """Hidden states and mask of one side of the guidance; None, None if it is a state alone."""
        if side.embeds is not None:
            mask = torch.ones(side.embeds.shape[:2]) if side.mask is None else side.mask
            embeds, mask = (x.to(self._execution_device) for x in (side.embeds, mask))
        elif side.texts is not None:
            embeds, mask = self._encode_texts(side.texts, clip_skip)
        else:
            return None, None
        return embeds.to(embeds.dtype if self.unet is None else self.unet.dtype), mask

    @torch.no_grad()
    def encode_prompt_state(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_state: PromptState | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> PromptState:
        """The state of `prompt`, or of `prompt_state` continued by it; of constant size whatever the prompt's length.

        Args:
            prompt: one or several; several continue one state each for themselves.
            prompt_state: one, or one per prompt.
            prompt_embeds, prompt_attention_mask: `[B, L, D_q]` and `[B, L]` in the place of `prompt`.
            clip_skip: as in `__call__`.
            cross_attention_kwargs: `{"scale": s}` of the calls that will read the state: a state is of one LoRA scale.

        Raises:
            ValueError: there is neither a prompt nor a state, the state is of another model, or the fusion is `paper`.
        """
        side = PromptInput("prompt", prompt, prompt_embeds, prompt_attention_mask, prompt_state)
        side.check(self.unet)
        check_cross_attention_kwargs(cross_attention_kwargs)
        if self.unet.config.crosswkv_fusion == "paper":
            raise ValueError(
                "A prompt state needs `crosswkv_fusion` 'state' or 'prefix', got 'paper': there the image writes the "
                "state; pass `prompt` to the pipeline instead."
            )
        if not len(side):
            raise ValueError("`prompt` or `prompt_state` must be given, got neither.")
        with self._lora_scaled(cross_attention_kwargs):
            state = self._condition_of(side, *self._embeds_of(side, clip_skip)).state
        assert state is not None
        return state

    def _condition_of(self, side: PromptInput, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> Condition:
        if self.unet.config.crosswkv_fusion == "paper":
            return Condition(None, embeds, mask)
        state = None if side.state is None else side.state.to(self._execution_device)
        if embeds is None:
            if state is not None:  # here and not in the steps, which may be compiled, and trust what was accepted
                self.unet.check_prompt_state(state)
            return Condition(state)
        if state is not None and len(state) != len(embeds):
            state = state[[0] * len(embeds)]
        state = self.unet.encode_prompt(embeds, mask, state)
        adds_text = self.unet.config.addition_embed_type == "text"
        return Condition(state, embeds, mask) if adds_text else Condition(state)

    def _condition(self, positive: PromptInput, negative: PromptInput, num_images_per_prompt: int) -> Condition:
        """For the whole batch: negative prompts, if guided, before the others."""
        sides = [positive]
        if self.do_classifier_free_guidance:
            sides.insert(0, negative.or_empty())
        embeds = [self._embeds_of(side, self.clip_skip) for side in sides]  # all texts before the U-Net's turn
        conditions = []
        for side, of_side in zip(sides, embeds, strict=True):
            condition = self._condition_of(side, *of_side)
            conditions.append(condition.rows(expansion(len(condition), len(positive), num_images_per_prompt)))
        return conditions[0] if len(conditions) == 1 else conditions[0].before(conditions[1])

    @contextmanager
    def _lora_scaled(self, cross_attention_kwargs: dict[str, Any] | None) -> Iterator[None]:
        """The LoRA's scale for the time of a call: states are read under the weights that wrote them."""
        scale = (cross_attention_kwargs or {}).get("scale", 1.0)
        models = [m for m in (self.text_encoder, self.unet) if m is not None] if scale != 1 else []
        adapted = [layer for model in models for layer in model.modules() if hasattr(layer, "scale_layer")]
        before = [dict(layer.scaling) for layer in adapted]
        for model in models:
            scale_lora_layers(model, scale)
        try:
            yield
        finally:  # not `unscale_lora_layers`, which cannot take back a scale of 0
            for layer, scaling in zip(adapted, before, strict=True):
                layer.scaling.update(scaling)
