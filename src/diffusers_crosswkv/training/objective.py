"""What a denoiser learns (equation 17 of the paper): noise, targets and weights, for DDPM-like schedules and flow.

`alpha` and `sigma` are what image and noise are scaled by, `x_t = alpha x + sigma noise`. All is float32.
"""

from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from .config import TrainingConfig

FLOW = "flow"
TARGETS = ("epsilon", "v_prediction", "sample")
MAX_SAMPLE_WEIGHT = 5.0  # at small noise the weight of a v target would grow without limit


class Draw(NamedTuple):
    """What is drawn for a batch."""

    noise: torch.Tensor  # [B, C, height, width]
    times: torch.Tensor  # [B], as the U-Net is told them: steps of the schedule, whole ones but for flow

    def to(self, device: torch.device | str) -> "Draw":
        return Draw(self.noise.to(device), self.times.to(device))


class Objective:
    """The loss per image, and what it is computed from.

    The target is the scheduler's: `prediction_type` epsilon, v_prediction or sample of a DDPM-like schedule (anything
    with `alphas_cumprod`), or the velocity `noise - x` with a `FlowMatchEulerDiscreteScheduler`: rectified flow (Liu
    et al., 2022, arXiv:2209.03003), its times shifted as the scheduler does (Esser et al., 2024, arXiv:2403.03206).

    Weights with `config.min_snr_gamma` (Hang et al., 2023, arXiv:2303.09556): the error of the image counts
    `min(SNR, gamma)` times, whatever the target; nothing at an SNR of zero, a last step that learns from those before
    it. Without, all errors count alike, but for the target `sample`, whose errors are weighted as those of a v target,
    `1 + SNR` times, up to `MAX_SAMPLE_WEIGHT`.

    Raises:
        ValueError: the schedule has no target that is known here; epsilon is asked at an SNR of zero; a setting is for
            the other kind of schedule.
    """

    def __init__(self, scheduler: Any, config: TrainingConfig):
        self.gamma, self.noise_offset = config.min_snr_gamma, config.noise_offset
        self.density = config.timestep_density
        self.steps = scheduler.config.num_train_timesteps
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            check_flow(scheduler, config)
            self.target_type, self.shift = FLOW, float(scheduler.shift)
            return
        check_schedule(scheduler, config)
        self.target_type = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.float().cpu()

    def draw(self, generator: torch.Generator, shape: tuple[int, ...]) -> Draw:
        """Noise and times of a whole batch of `shape`, on the CPU, whatever the device and the number of processes."""
        noise = torch.randn(shape, generator=generator)
        if self.target_type == FLOW:
            share = compute_density_for_timestep_sampling(
                self.density, shape[0], logit_mean=0.0, logit_std=1.0, generator=generator
            )
            times = self.shift * share / (1 + (self.shift - 1) * share) * self.steps
        else:
            times = torch.randint(0, self.steps, shape[:1], generator=generator)
        if self.noise_offset > 0:
            noise = noise + self.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
        return Draw(noise, times)

    def noisy(self, samples: torch.Tensor, draw: Draw) -> torch.Tensor:
        """`x_t` `[B, C, height, width]` of clean samples."""
        alpha, sigma = self.scales(draw.times)
        return alpha * samples.float() + sigma * draw.noise

    def target(self, samples: torch.Tensor, draw: Draw) -> torch.Tensor:
        """What the denoiser shall predict from `x_t`, `[B, C, height, width]`."""
        samples = samples.float()
        if self.target_type == FLOW:
            return draw.noise - samples
        if self.target_type == "epsilon":
            return draw.noise
        if self.target_type == "sample":
            return samples
        alpha, sigma = self.scales(draw.times)
        return alpha * draw.noise - sigma * samples

    def per_sample(self, prediction: torch.Tensor, samples: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Weighted mean squared error of each image, `[B]`."""
        errors = (prediction.float() - self.target(samples, draw)).square().flatten(1).mean(1)
        return errors * self.weights(draw.times)

    def weights(self, times: torch.Tensor) -> torch.Tensor:
        """What the squared error of the target counts, `[B]`; finite also for an SNR of zero and infinity."""
        if self.target_type == FLOW:
            return torch.ones_like(times, dtype=torch.float32)
        alphas = self.alphas_cumprod.to(times.device)[times]
        snr = alphas / (1 - alphas)
        if self.gamma is None:
            weighted = self.target_type == "sample"
            return (1 + snr).clamp(max=MAX_SAMPLE_WEIGHT) if weighted else torch.ones_like(snr)
        if self.target_type == "epsilon":
            return (self.gamma / snr).clamp(max=1)
        weight_of_image = snr.clamp(max=self.gamma)
        return weight_of_image if self.target_type == "sample" else weight_of_image / (1 + snr)

    def scales(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`alpha` and `sigma` of each image, `[B, 1, 1, 1]`."""
        if self.target_type == FLOW:
            sigma = (times / self.steps)[:, None, None, None]
            return 1 - sigma, sigma
        alphas = self.alphas_cumprod.to(times.device)[times][:, None, None, None]
        return alphas.sqrt(), (1 - alphas).sqrt()


def check_flow(scheduler: FlowMatchEulerDiscreteScheduler, config: TrainingConfig) -> None:
    for name in ("use_dynamic_shifting", "invert_sigmas"):
        if scheduler.config[name]:
            raise ValueError(
                f"Training with flow matching needs a scheduler with `{name}=False`, got True; a constant `shift` "
                "serves images of one size."
            )
    if config.min_snr_gamma is not None:
        raise ValueError(
            f"`min_snr_gamma` is for DDPM-like schedules and must be None with flow matching, got "
            f"{config.min_snr_gamma}; `timestep_density='logit_normal'` gives the middle of the way more weight."
        )


def check_schedule(scheduler: Any, config: TrainingConfig) -> None:
    prediction_type = scheduler.config.get("prediction_type")
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or prediction_type not in TARGETS:
        raise ValueError(
            "The scheduler must be DDPM-like with `prediction_type` epsilon, v_prediction or sample, or a "
            f"FlowMatchEulerDiscreteScheduler, got {type(scheduler).__name__} with {prediction_type!r}."
        )
    zero_terminal_snr = scheduler.config.get("rescale_betas_zero_snr") or alphas[-1] == 0
    if prediction_type == "epsilon" and zero_terminal_snr:
        raise ValueError(
            "With zero terminal SNR (`rescale_betas_zero_snr=True`) `prediction_type` must be v_prediction or sample, "
            "got epsilon: the last step sees nothing but noise, and repeating it teaches nothing of the image."
        )
    if config.timestep_density != "uniform":
        raise ValueError(
            f"`timestep_density` must be 'uniform' unless the scheduler is of flow matching, got "
            f"{config.timestep_density!r} and {type(scheduler).__name__}."
        )
