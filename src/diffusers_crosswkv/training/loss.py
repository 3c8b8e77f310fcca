"""The denoising loss (equation 17 of the paper), for epsilon, v and sample targets."""

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from .batches import Batch

MAX_SAMPLE_WEIGHT = 5.0  # at small noise the weight of a v target would grow without limit


def diffusion_loss(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    batch: Batch,
    prompt_embeds: torch.Tensor,
    encoder_attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error between the U-Net's prediction and what `scheduler.config.prediction_type` asks for.

    Args:
        unet: a DIR7UNet2DConditionModel, bare or wrapped.
        prompt_embeds: `[B, L, D_q]` of the batch's captions.
        encoder_attention_mask: `[B, L]`, 1 = keep.

    Raises:
        ValueError: the scheduler predicts something else than `epsilon`, `v_prediction` or `sample`.
    """
    noisy = scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
    target = training_target(scheduler, batch)
    prediction = unet(noisy, batch.timesteps, prompt_embeds, encoder_attention_mask=encoder_attention_mask).sample
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
    if scheduler.config.prediction_type == "sample":
        errors = errors * (1 + compute_snr(scheduler, batch.timesteps)).clamp(max=MAX_SAMPLE_WEIGHT)
    return errors.mean()


def training_target(scheduler: DDPMScheduler, batch: Batch) -> torch.Tensor:
    """What the U-Net shall predict, `[B, C, height, width]`."""
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return batch.noise
    if prediction_type == "sample":
        return batch.images
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(batch.images, batch.noise, batch.timesteps)
    raise ValueError(f"`prediction_type` must be epsilon, v_prediction or sample, got {prediction_type!r}.")
