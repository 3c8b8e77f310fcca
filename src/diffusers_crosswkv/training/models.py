"""What is trained, and what it is trained with."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Models:
    """The parts of a text-to-image model.

    Args:
        scheduler: the noise schedule and what the U-Net predicts.
        vae: images are trained on as its latents; as pixels if None.
        text_prefix: put before every caption, `<|endoftext|>` in the paper.
    """

    unet: UNet2DConditionModel
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: SchedulerMixin
    text_prefix: str = ""
    vae: AutoencoderKL | None = None

    def networks(self) -> Mapping[str, nn.Module]:
        """All that have weights."""
        networks = {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}
        return {name: network for name, network in networks.items() if network is not None}

    def num_parameters(self) -> int:
        return sum(parameter.numel() for network in self.networks().values() for parameter in network.parameters())
