"""Image to image with DIR-7: start from a noised image instead of noise alone."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from diffusers.utils.torch_utils import randn_tensor

from ..models import PromptState
from .checks import check_ip_adapter, check_noise, check_steps, check_strength
from .denoising import denoise, step_arguments
from .pipeline_dir7 import DIR7Pipeline, StepCallback
from .prompts import PromptInput, expansion


class DIR7Img2ImgPipeline(DIR7Pipeline):
    """Image to image with a U-Net whose cross-attention is CrossWKV; the components are those of [`DIR7Pipeline`]."""

    get_timesteps = StableDiffusionImg2ImgPipeline.get_timesteps

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        image: PipelineImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        prompt_state: PromptState | None = None,
        negative_prompt_state: PromptState | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Change `image` towards `prompt`. All arguments but these are those of [`DIR7Pipeline.__call__`].

        Args:
            image: PIL, NumPy `[B, height, width, C]` or torch `[B, C, height, width]` in [0, 1], or a list of one of
                them; latents of the VAE pass as they are. One, one per prompt, or one per image that is made.
            strength: above 0, at most 1: which share of `num_inference_steps` is done, and with how much noise it
                starts. 1 nearly ignores the image.

        Raises:
            ValueError: an argument does not fit; the message says what would.
        """
        # 1. Check inputs
        positive = PromptInput("prompt", prompt, prompt_embeds, prompt_attention_mask, prompt_state)
        negative = PromptInput(
            "negative_prompt",
            negative_prompt,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
            negative_prompt_state,
        )
        step_end = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.check_inputs(positive, negative, num_inference_steps, num_images_per_prompt, output_type, step_end)
        check_strength(strength)
        check_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        num_images = len(positive) * num_images_per_prompt
        image, rows = self._preprocess(image, len(positive), num_images_per_prompt)
        generator = check_noise(generator, None, (num_images,))
        self._set_guidance(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)

        with self._lora_scaled(cross_attention_kwargs):
            # 2. Encode the prompts, once for all steps
            condition = self._condition(positive, negative, num_images_per_prompt)
            condition = self._with_images(condition, ip_adapter_image, ip_adapter_image_embeds, num_images)

            # 3. Timesteps and the noised image
            device = self._execution_device
            _, count = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
            steps, _ = self.get_timesteps(count, strength, device)
            check_steps(steps, strength, count)
            latents = self._encode_image(image, rows, generator)
            noise = randn_tensor(latents.shape, generator, device=device, dtype=latents.dtype)
            latents = add_noise(self.scheduler, latents, noise, steps[0])

            # 4. Denoise
            latents = denoise(self, latents, steps, condition, step_arguments(self, generator, eta), step_end)

        # 5. Decode
        return self._output(latents, output_type, return_dict, generator)

    def _preprocess(
        self, image: PipelineImageInput, num_prompts: int, num_images_per_prompt: int, **options
    ) -> tuple[torch.Tensor, list[int]]:
        """Images `[N, C, height, width]` in [-1, 1], or latents, and which of them each image that is made takes."""
        if image is None:
            raise ValueError("`image` must be given: a PIL image, an array, a tensor, or a list of one of them.")
        images = self.image_processor.preprocess(image, **options)
        num_images = num_prompts * num_images_per_prompt
        if len(images) not in (1, num_prompts, num_images):
            raise ValueError(
                f"`image` must be one, one per prompt or one per image that is made, got {len(images)} for "
                f"{num_prompts} prompts and {num_images} images."
            )
        return images, expansion(len(images), num_prompts, num_images_per_prompt)

    def _is_latents(self, image: torch.Tensor) -> bool:
        return self.vae is None or (self._knows_latents and image.shape[1] == self._channels)

    def _encode_image(self, image: torch.Tensor, rows: list[int], generator) -> torch.Tensor:
        """Latents at the U-Net's scale of images in [-1, 1], a row per image that is made.

        In pixel space, and for latents, the same again. Every image is encoded once, but where each has a generator.
        """
        image = image.to(self._execution_device)
        if self._is_latents(image):
            return image[rows].to(self.unet.dtype)
        image = image.to(self.vae.dtype)
        if isinstance(generator, list | tuple):
            parts = zip(image[rows].split(1), generator, strict=True)
            latents = torch.cat([retrieve_latents(self.vae.encode(x), own) for x, own in parts])
        else:
            latents = retrieve_latents(self.vae.encode(image), generator)[rows]
        latents = (latents - (self.vae.config.get("shift_factor") or 0)) * self.vae.config.scaling_factor
        return latents.to(self.unet.dtype)


def add_noise(scheduler, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """`latents` as they stand at `timestep` of the scheduler's forward process."""
    timesteps = timestep.repeat(len(latents))
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(latents, noise, timesteps)
    return scheduler.scale_noise(latents, timesteps, noise)  # flow matching
