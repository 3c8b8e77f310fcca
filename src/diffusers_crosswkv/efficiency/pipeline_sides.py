"""Whole pipelines with random weights, a stock one beside DIR-7, and the parts that an image's time is made of."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..evaluation.prompt_length import SOFTMAX, UNets
from ..models import PromptState
from ..models.text_windows import encode_texts
from ..pipelines import DIR7Pipeline
from .pipeline_process import GUIDANCE_SCALE

STATE = "state"
SIDES = (SOFTMAX, STATE)
WINDOW = 77  # tokens that CLIP's text encoder reads at once, its two special ones included
VAE_FACTOR = 8


def sd_vae(latent_channels: int, width: int) -> AutoencoderKL:
    """The VAE of Stable Diffusion at `width` 128, random."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=min(32, width),
        sample_size=512,
    )


def clip_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """The text encoder of CLIP ViT-L/14 at width 768 and 12 layers, random; its vocabulary has CLIP's size."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def letter_tokenizer() -> CLIPTokenizer:
    """Of CLIP's form, a token per letter: a text of any number of tokens can be written."""
    letters = [x + end for end in ("", "</w>") for x in string.ascii_lowercase]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=WINDOW)


def text_of_length(length: int, letter: str = "a") -> str:
    """A text of which [`letter_tokenizer`] makes `length` tokens, the special ones of all windows included."""
    return letter * (length - 2 * -(-length // WINDOW))


@dataclass(frozen=True)
class Pipelines:
    """The pipelines of a preset: they share the text encoder, the VAE and the scheduler."""

    name: str
    unets: UNets
    softmax: StableDiffusionPipeline
    state: DIR7Pipeline

    @classmethod
    def make(cls, name: str, device: torch.device, dtype: torch.dtype) -> "Pipelines":
        """Text encoder and VAE are those of Stable Diffusion 1.5 in size, but for `dir7_tiny`, where they are tiny."""
        unets = UNets.make(name, device, dtype)
        config, tiny = unets.crosswkv.config, name == "dir7_tiny"
        tokenizer = letter_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            text_encoder = clip_text_encoder(tokenizer, config.cross_attention_dim, 1 if tiny else 12)
            vae = sd_vae(config.in_channels, 8 if tiny else 128)
        for model in (text_encoder, vae):
            nn.Module.to(model.eval().requires_grad_(False), device, dtype)
        scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
        softmax = StableDiffusionPipeline(
            **parts, unet=unets.softmax, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        state = DIR7Pipeline(**parts, unet=unets.crosswkv, prepend_endoftext=False)
        for pipeline in (softmax, state):
            pipeline.set_progress_bar_config(disable=True)
        return cls(name, unets, softmax, state)

    def encode(self, length: int) -> torch.Tensor:
        """`[2, L, D_q]`: a negative prompt and a prompt of so many tokens each, in windows where they are long."""
        texts = [text_of_length(length, letter) for letter in "ba"]
        hidden, mask = encode_texts(self.state.text_encoder, self.state.tokenizer, texts)
        assert hidden.shape[1] == length and mask.all()
        return hidden

    def random_latents(self, size: int) -> torch.Tensor:
        unet, side = self.unets.softmax, size // VAE_FACTOR
        return torch.randn(1, unet.config.in_channels, side, side, device=unet.device, dtype=unet.dtype)

    def scan(self, embeds: torch.Tensor) -> PromptState:
        """The states of negative prompt and prompt, one after the other as the pipeline does."""
        states = [self.unets.crosswkv.encode_prompt(of_one) for of_one in embeds.split(1)]
        return PromptState.cat(states)

    def steps(self, size: int, embeds: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
        """One guided denoising step of either side, of one image of `size` pixels and the same prompts."""
        scheduler, latents = self.state.scheduler, self.random_latents(size)
        scheduler.set_timesteps(50)
        timestep = scheduler.timesteps[len(scheduler.timesteps) // 2]
        reading = {"encoder_hidden_states": None, "cross_attention_kwargs": {"prompt_state": self.scan(embeds)}}
        told: dict[str, tuple[Any, dict]] = {
            SOFTMAX: (self.unets.softmax, {"encoder_hidden_states": embeds}),
            STATE: (self.unets.crosswkv, reading),
        }

        def step(side: str) -> torch.Tensor:
            unet, text = told[side]
            negative, positive = unet(torch.cat([latents] * 2), timestep, **text).sample.chunk(2)
            noise_pred = negative + GUIDANCE_SCALE * (positive - negative)
            return scheduler.step(noise_pred, timestep, latents).prev_sample

        return {side: lambda side=side: step(side) for side in SIDES}  # type: ignore[misc]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.state.decode_latents(latents)

    def whole_images(self, size: int, length: int, steps: int) -> dict[str, Callable[[], Any]]:
        """What a user calls, from the prompt to the picture."""

        def draw(pipeline: StableDiffusionPipeline) -> Any:
            negative, positive = self.encode(length).split(1)
            embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
            return pipeline(
                height=size, width=size, num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, **embeds
            ).images

        return {SOFTMAX: lambda: draw(self.softmax), STATE: lambda: draw(self.state)}
