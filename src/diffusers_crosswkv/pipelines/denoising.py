"""The loop that all pipelines share: predict, guide, step, and let the caller look on."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ..host_memory import freed_memory_kept
from .prompts import Condition

if TYPE_CHECKING:
    from .pipeline_dir7 import DIR7Pipeline

CALLBACK_TENSORS = ("latents", "prompt_state", "prompt_embeds")


@dataclass(frozen=True)
class StepEnd:
    """What the caller wants to be called with after every step.

    `prompt_state` and `prompt_embeds` both name what the U-Net reads, the negative prompts first: a `PromptState` or,
    in `paper` fusion, text tokens. The second name is the one that callbacks written for stock pipelines use.
    """

    callback: Callable[..., dict] | None = None
    tensors: Sequence[str] = ("latents",)

    def __call__(
        self, pipe: "DIR7Pipeline", step: int, timestep: Any, latents: torch.Tensor, condition: Condition
    ) -> tuple[torch.Tensor, Condition]:
        if self.callback is None:
            return latents, condition
        text = condition.embeds if condition.state is None else condition.state
        known = {"latents": latents, "prompt_state": text, "prompt_embeds": text}
        returned = self.callback(pipe, step, timestep, {name: known[name] for name in self.tensors}) or {}
        for name in ("prompt_state", "prompt_embeds"):
            if returned.get(name, text) is not text:
                if not isinstance(returned[name], type(text)):
                    raise ValueError(
                        f"A callback must return a {type(text).__name__} under `{name}`, got "
                        f"{type(returned[name]).__name__}; `pipe.encode_prompt_state` makes states of prompts and "
                        "embeddings."
                    )
                condition = condition.with_text(returned[name])
        return returned.get("latents", latents), condition


def denoise(
    pipe: "DIR7Pipeline",
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    condition: Condition,
    step_kwargs: dict[str, Any],
    step_end: StepEnd,
    extra_channels: torch.Tensor | None = None,
    restore: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """From noise to latents `[B, C, height, width]`.

    Args:
        timesteps: those of the scheduler that are left to do.
        condition: `B` rows or, guided, `2 B`, the negative ones first.
        extra_channels: `[B, C', height, width]`, what an inpainting U-Net reads besides the latents.
        restore: called with latents and step number after every step; what it returns is gone on with.
    """
    order = pipe.scheduler.order
    pipe._num_timesteps = len(timesteps)
    bar = pipe.progress_bar(total=-(-len(timesteps) // order))
    with bar as progress_bar, freed_memory_kept(latents.device):
        for i, t in enumerate(timesteps):
            if pipe.interrupt:
                break
            noise_pred = predict(pipe, latents, t, condition, extra_channels)
            latents = pipe.scheduler.step(noise_pred, t, latents, **step_kwargs, return_dict=False)[0]
            if restore is not None:
                latents = restore(latents, i)
            latents, condition = step_end(pipe, i, t, latents, condition)
            if (i + 1) % order == 0 or i + 1 == len(timesteps):
                progress_bar.update()
    return latents


def predict(
    pipe: "DIR7Pipeline",
    latents: torch.Tensor,
    timestep: torch.Tensor,
    condition: Condition,
    extra_channels: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the U-Net predicts for `latents`, with classifier-free guidance if it is on at this step."""
    guided = pipe.do_classifier_free_guidance
    if not guided and len(condition) == 2 * len(latents):  # a callback has turned guidance off
        condition = condition.rows(slice(len(latents), None))
    if hasattr(pipe.scheduler, "scale_model_input"):  # flow matching schedulers have none
        model_input = pipe.scheduler.scale_model_input(latents, timestep)
    else:
        model_input = latents
    if extra_channels is not None:
        model_input = torch.cat((model_input, extra_channels), dim=1)
    others = {name: x for name, x in (pipe.cross_attention_kwargs or {}).items() if name != "scale"}
    noise_pred = pipe.unet(
        torch.cat([model_input] * 2) if guided else model_input,
        timestep,
        timestep_cond=guidance_embedding(pipe, latents),
        return_dict=False,
        **condition.unet_arguments(others),
    )[0]
    if not guided:
        return noise_pred
    negative, positive = noise_pred.chunk(2)
    noise_pred = negative + pipe.guidance_scale * (positive - negative)
    if pipe.guidance_rescale > 0:
        noise_pred = rescale_noise_cfg(noise_pred, positive, pipe.guidance_rescale)
    return noise_pred


def guidance_embedding(pipe: "DIR7Pipeline", latents: torch.Tensor) -> torch.Tensor | None:
    """`[B, time_cond_proj_dim]` for a U-Net that was distilled to take the guidance scale as an input, else None."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    scale = torch.full((len(latents),), pipe.guidance_scale - 1)
    return pipe.get_guidance_scale_embedding(scale, embedding_dim=width).to(latents)


def step_arguments(pipe: "DIR7Pipeline", generator, eta: float) -> dict[str, Any]:
    """What this scheduler's `step` takes besides the prediction.

    A scheduler that clips its estimate of the image must derive the noise from the clipped estimate. DDIM's
    default does not: in pixel space, guidance then drives every image into saturation.
    """
    parameters = inspect.signature(pipe.scheduler.step).parameters
    kwargs = {name: value for name, value in (("generator", generator), ("eta", eta)) if name in parameters}
    config = pipe.scheduler.config
    if "use_clipped_model_output" in parameters and (config.get("clip_sample") or config.get("thresholding")):
        kwargs["use_clipped_model_output"] = True
    return kwargs
