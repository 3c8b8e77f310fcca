"""Checks of what a pipeline was asked for, before any work starts; each raises ValueError for what does not fit."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_unicode(name: str, text: str) -> None:
    """Refuse halves of characters, which a terminal makes of bytes that are no UTF-8, and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` must be valid Unicode, got {text[error.start]!r} at {error.start}; write it in UTF-8."
        ) from None


def check_size(height: object, width: object, factor: int) -> None:
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, Integral) or size < 1 or size % factor:
            raise ValueError(f"`{name}` must be a positive multiple of {factor}, got {size!r}.")


def check_counts(num_inference_steps: object, num_images_per_prompt: object) -> None:
    for name, count in (
        ("num_inference_steps", num_inference_steps),
        ("num_images_per_prompt", num_images_per_prompt),
    ):
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {count!r}.")


def check_guidance(guidance_scale: float, guidance_rescale: float) -> None:
    if not abs(guidance_scale) < float("inf"):
        raise ValueError(f"`guidance_scale` must be finite, got {guidance_scale}; 1 turns guidance off.")
    if not 0 <= guidance_rescale <= 1:
        raise ValueError(f"`guidance_rescale` must be from 0 to 1, got {guidance_rescale}; 0 turns it off.")


def check_output(output_type: str, callback_tensors: Sequence[str], known_tensors: Sequence[str]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be pil, np, pt or latent, got {output_type!r}.")
    if isinstance(callback_tensors, str):
        raise ValueError(
            "`callback_on_step_end_tensor_inputs` must be a list of names, got the string "
            f"{callback_tensors!r}; pass [{callback_tensors!r}]."
        )
    unknown = set(callback_tensors) - set(known_tensors)
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` may name {', '.join(known_tensors)}, got {sorted(unknown)}."
        )


def check_cross_attention_kwargs(cross_attention_kwargs: dict[str, Any] | None) -> None:
    unknown = set(cross_attention_kwargs or ()) - {"scale", "ip_adapter_masks"}
    if unknown:
        raise ValueError(
            f"`cross_attention_kwargs` may hold the LoRA's `scale` and `ip_adapter_masks`, got {sorted(unknown)}; "
            "pass prompt states as `prompt_state=` and `negative_prompt_state=`."
        )


def check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be above 0 and at most 1, got {strength}.")


def check_steps(steps: torch.Tensor, strength: float, count: int) -> None:
    """That `strength` leaves something of `count` steps to do."""
    if len(steps) == 0:
        raise ValueError(
            f"`strength` times the number of steps must give at least one step, got {strength} times {count}; raise "
            "one of the two."
        )


def check_ip_adapter(image: object, image_embeds: object) -> None:
    if image is not None and image_embeds is not None:
        raise ValueError(
            "`ip_adapter_image` and `ip_adapter_image_embeds` exclude each other, got both; leave one out."
        )
    if image_embeds is not None and not isinstance(image_embeds, list):
        raise ValueError(
            f"`ip_adapter_image_embeds` must be a list, one tensor per IP-Adapter, got {type(image_embeds).__name__}."
        )


def check_noise(generator: Any, latents: torch.Tensor | None, shape: tuple[int, ...]) -> Any:
    """The generator, or those of a list or tuple as the list that Diffusers knows."""
    if isinstance(generator, list | tuple) and len(generator) != shape[0]:
        raise ValueError(f"`generator` must be one or one per image, got {len(generator)} for {shape[0]} images.")
    if latents is not None and (latents.shape != shape or not latents.isfinite().all()):
        finite = "finite" if latents.isfinite().all() else "not finite"
        raise ValueError(f"`latents` must be finite and {list(shape)}, got {list(latents.shape)}, {finite}.")
    return list(generator) if isinstance(generator, tuple) else generator
