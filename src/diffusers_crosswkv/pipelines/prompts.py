"""What a pipeline is told, in each of the forms in which it may come, and what its U-Net is told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models import DIR7UNet2DConditionModel, PromptState
from .checks import check_unicode


@dataclass(frozen=True)
class PromptInput:
    """One side of the guidance: prompts as texts or as embeddings, and the state that they continue.

    Args:
        name: `prompt` or `negative_prompt`, for messages.
        texts: one or several.
        embeds: `[B, L, D_q]` in the place of texts.
        mask: `[B, L]` of the embeddings, 1 = keep.
        state: one, or one per prompt.
    """

    name: str
    texts: str | Sequence[str] | None = None
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    state: PromptState | None = None

    def __len__(self) -> int:
        """Prompts; 0 if nothing was given."""
        if self.texts is not None:
            return 1 if isinstance(self.texts, str) else len(self.texts)
        given = self.state if self.embeds is None else self.embeds
        return 0 if given is None else len(given)

    def or_empty(self) -> "PromptInput":
        """The empty text, if nothing was given: what guidance leads away from by default."""
        return self if len(self) else replace(self, texts="")

    def check(self, unet: DIR7UNet2DConditionModel) -> None:
        """Raise ValueError for what does not fit, by itself."""
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        if texts is not None and (
            not isinstance(texts, list | tuple) or not texts or any(not isinstance(text, str) for text in texts)
        ):
            raise ValueError(f"`{self.name}` must be a string or a non-empty list of strings, got {self.texts!r}.")
        for text in texts or ():
            check_unicode(self.name, text)
        if texts is not None and self.embeds is not None:
            raise ValueError(f"`{self.name}` and `{self.name}_embeds` exclude each other, got both; leave one out.")
        self._check_embeds()
        if self.state is None:
            return
        if not isinstance(self.state, unet.prompt_state_class):
            raise ValueError(f"`{self.name}_state` must be a PromptState, got {type(self.state).__name__}.")
        if unet.config.crosswkv_fusion == "paper":
            raise ValueError(
                f"With `crosswkv_fusion='paper'` there are no prompt states; leave `{self.name}_state` out."
            )
        if len(self.state) not in (1, len(self)):
            raise ValueError(
                f"`{self.name}` continues `{self.name}_state`, which must hold one state or one per prompt, "
                f"got {len(self.state)} states and {len(self)} prompts."
            )

    def _check_embeds(self) -> None:
        if self.embeds is None:
            if self.mask is not None:
                raise ValueError(
                    f"`{self.name}_attention_mask` belongs to `{self.name}_embeds`, which is missing; texts need none."
                )
            return
        if not isinstance(self.embeds, torch.Tensor) or self.embeds.ndim != 3 or len(self.embeds) == 0:
            got = list(self.embeds.shape) if isinstance(self.embeds, torch.Tensor) else type(self.embeds).__name__
            raise ValueError(f"`{self.name}_embeds` must be a tensor [B, L, D_q] with B, L >= 1, got {got}.")
        if self.mask is not None and self.mask.shape != self.embeds.shape[:2]:
            raise ValueError(
                f"`{self.name}_attention_mask` must be [B, L] = {list(self.embeds.shape[:2])} like the embeddings, "
                f"got {list(self.mask.shape)}."
            )


@dataclass(frozen=True)
class Condition:
    """What the U-Net reads, a row per sample: a prompt state or, in `paper` fusion, text tokens and their mask.

    Both, where the U-Net adds the text to the timestep as well (`addition_embed_type`).

    `image_embeds` are those of the IP-Adapters, one tensor each.
    """

    state: PromptState | None = None
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    image_embeds: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.embeds) if self.state is None else len(self.state)  # type: ignore[arg-type]

    def rows(self, rows: list[int] | slice) -> "Condition":
        state = None if self.state is None else self.state[rows]
        embeds, mask = (None if x is None else x[rows] for x in (self.embeds, self.mask))
        return Condition(state, embeds, mask, tuple(x[rows] for x in self.image_embeds))

    def with_text(self, text: Any) -> "Condition":
        """With another prompt state or, in `paper` fusion, other tokens, as many; the last rows, if fewer."""
        kept = self.rows(slice(len(self) - len(text), None))
        return replace(kept, embeds=text) if self.state is None else replace(kept, state=text)

    def before(self, other: "Condition") -> "Condition":
        """The prompts of both, these first; without image embeddings."""
        state = None if self.state is None or other.state is None else self.state.cat([self.state, other.state])
        if self.embeds is None or self.mask is None or other.embeds is None or other.mask is None:
            return Condition(state)
        length = max(self.embeds.shape[1], other.embeds.shape[1])
        embeds, mask = (
            torch.cat([pad_tokens(x, length) for x in pair])
            for pair in ((self.embeds, other.embeds), (self.mask, other.mask))
        )
        return Condition(state, embeds, mask)

    def unet_arguments(self, cross_attention_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keywords of `DIR7UNet2DConditionModel.forward`."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.embeds, "encoder_attention_mask": self.mask}
        if self.state is not None:
            cross_attention_kwargs = cross_attention_kwargs | {"prompt_state": self.state}
        arguments["cross_attention_kwargs"] = cross_attention_kwargs or None
        if self.image_embeds:
            arguments["added_cond_kwargs"] = {"image_embeds": list(self.image_embeds)}
        return arguments


def pad_tokens(x: torch.Tensor, length: int) -> torch.Tensor:
    """`[B, L, ...]` with zeros behind, so that L = `length`."""
    return torch.cat((x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])), dim=1)


def expansion(given: int, num_prompts: int, num_images_per_prompt: int) -> list[int]:
    """Which of `given` rows (one, one per prompt, or one per image) each image takes."""
    num_images = num_prompts * num_images_per_prompt
    if given not in (1, num_prompts, num_images):
        raise ValueError(f"There must be one or one per prompt, got {given} for {num_prompts} prompts.")
    if given == num_images:
        return list(range(num_images))
    return [0 if given == 1 else i // num_images_per_prompt for i in range(num_images)]
