import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_crosswkv.training.batches import Batch
from diffusers_crosswkv.training.loss import MAX_SAMPLE_WEIGHT, diffusion_loss


class Predicts:
    """A denoiser that returns what it is told, and remembers its inputs."""

    def __init__(self, prediction):
        self.prediction = prediction

    def __call__(self, sample, timestep, text, encoder_attention_mask=None):
        self.seen = (sample, timestep, text, encoder_attention_mask)
        return type("Output", (), {"sample": self.prediction})


@pytest.fixture
def batch():
    return Batch(torch.randn(4, 1, 8, 8), [""] * 4, torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]))


def test_targets_and_noise(batch):
    """Against the formulas: x_t = sqrt(abar) x + sqrt(1 - abar) n; v = sqrt(abar) n - sqrt(1 - abar) x."""
    betas = torch.linspace(0.0001, 0.02, 1000)
    abar = torch.cumprod(1 - betas, 0)[batch.timesteps].view(4, 1, 1, 1)
    noisy = abar.sqrt() * batch.images + (1 - abar).sqrt() * batch.noise
    targets = {
        "epsilon": batch.noise,
        "v_prediction": abar.sqrt() * batch.noise - (1 - abar).sqrt() * batch.images,
    }
    text, mask = torch.randn(4, 3, 24), torch.ones(4, 3)
    for prediction_type, target in targets.items():
        scheduler = DDPMScheduler(prediction_type=prediction_type)
        unet = Predicts(target + 0.5)
        loss = diffusion_loss(unet, scheduler, batch, text, mask)
        torch.testing.assert_close(loss, torch.tensor(0.25), rtol=1e-4, atol=0)
        torch.testing.assert_close(unet.seen[0], noisy, rtol=1e-4, atol=1e-5)
        assert unet.seen[1:] == (batch.timesteps, text, mask)


def test_sample_target_weighs_as_a_v_target_up_to_a_limit(batch):
    """v - v' = (x' - x) / sqrt(1 - abar), so that the squared error of v is 1 + SNR times that of x."""
    abar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)[batch.timesteps]
    weights = (1 / (1 - abar)).clamp(max=MAX_SAMPLE_WEIGHT)
    assert weights[0] == MAX_SAMPLE_WEIGHT > weights[2] > weights[3] > 1
    loss = diffusion_loss(
        Predicts(batch.images + 0.5), DDPMScheduler(prediction_type="sample"), batch, torch.randn(4, 3, 24)
    )
    torch.testing.assert_close(loss, 0.25 * weights.mean(), rtol=1e-4, atol=0)


def test_other_targets_are_refused(batch):
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="must be epsilon, v_prediction or sample, got 'flow'"):
        diffusion_loss(Predicts(batch.noise), scheduler, batch, torch.randn(4, 3, 24))
