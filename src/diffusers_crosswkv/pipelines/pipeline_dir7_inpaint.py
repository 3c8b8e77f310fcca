"""Inpainting with DIR-7: denoise where the mask is white, keep the image where it is black."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor

from ..models import PromptState
from .checks import check_ip_adapter, check_noise, check_steps, check_strength
from .denoising import denoise, step_arguments
from .pipeline_dir7 import StepCallback
from .pipeline_dir7_img2img import DIR7Img2ImgPipeline, add_noise
from .prompts import PromptInput, expansion


class DIR7InpaintPipeline(DIR7Img2ImgPipeline):
    """Inpainting with a U-Net whose cross-attention is CrossWKV; the components are those of [`DIR7Pipeline`].

    A U-Net that reads mask and masked image besides the latents (9 input channels with a VAE of 4) gets them; any
    other is guided by putting the known part back, noised, after every step.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        masked_image_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
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
        """Fill in `image` where `mask_image` is white. All arguments but these are those of [`DIR7Pipeline.__call__`].

        Args:
            image: as in [`DIR7Img2ImgPipeline.__call__`]; it is resized to `height` and `width`.
            mask_image: in the same forms, of one channel in [0, 1]; above 0.5 the image is made anew.
            masked_image_latents: `[B, C, height, width]` in the VAE's size, for a U-Net that reads them, in the place
                of those of `image` without what the mask covers.
            padding_mask_crop: work on the part around the mask alone, with so many pixels of margin, at full `height`
                and `width`, and put the result back into `image`. For one PIL image and mask, and `output_type="pil"`.
            strength: above 0, at most 1: with how much noise the part that is made anew starts; 1 forgets what was
                there.

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
        height, width = self._size(height, width, latents)
        step_end = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.check_inputs(positive, negative, num_inference_steps, num_images_per_prompt, output_type, step_end)
        check_strength(strength)
        check_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        original = image
        size: dict[str, Any] = {"height": height, "width": width}
        crop = self._crop_region(image, mask_image, padding_mask_crop, output_type, width, height)
        if crop is not None:
            size |= {"crops_coords": crop, "resize_mode": "fill"}
        image, rows = self._preprocess(image, len(positive), num_images_per_prompt, **size)
        mask = self._preprocess_mask(mask_image, len(positive), num_images_per_prompt, **size)
        if self._reads_mask and masked_image_latents is None and self.vae is not None and self._is_latents(image):
            raise ValueError(
                "`image` must be an image for a U-Net that reads the masked image, got latents; pass its "
                "`masked_image_latents` as well."
            )
        shape = self._latents_shape(len(positive) * num_images_per_prompt, height, width)
        generator = check_noise(generator, latents, shape)
        self._set_guidance(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)

        with self._lora_scaled(cross_attention_kwargs):
            # 2. Encode the prompts, once for all steps
            condition = self._condition(positive, negative, num_images_per_prompt)
            condition = self._with_images(condition, ip_adapter_image, ip_adapter_image_embeds, shape[0])

            # 3. Timesteps, the image's latents and starting noise
            device = self._execution_device
            _, count = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
            steps, _ = self.get_timesteps(count, strength, device)
            check_steps(steps, strength, count)
            dtype = self.unet.dtype
            needed = strength < 1 or not self._reads_mask
            known = self._encode_image(image, rows, generator) if needed else torch.zeros(shape)
            noise = randn_tensor(shape, generator, device=device, dtype=dtype) if latents is None else latents
            noise = noise.to(device, dtype)
            if strength == 1:
                latents = self.prepare_latents(shape, None, noise)
            else:
                latents = add_noise(self.scheduler, known, noise, steps[0])
            small_mask = F.interpolate(mask, shape[2:]).to(device, dtype)

            # 4. Denoise
            extra_channels = None
            if self._reads_mask:
                if masked_image_latents is None:
                    masked = self._encode_image(image[rows] * (mask < 0.5), list(range(shape[0])), generator)
                else:
                    given = masked_image_latents
                    masked = given[expansion(len(given), len(positive), num_images_per_prompt)].to(device, dtype)
                extra_channels = torch.cat((small_mask, masked), dim=1)

            def restore(latents: torch.Tensor, step: int) -> torch.Tensor:
                last = step + 1 == len(steps)
                around = known if last else add_noise(self.scheduler, known, noise, steps[step + 1])
                return (1 - small_mask) * around + small_mask * latents

            step_kwargs = step_arguments(self, generator, eta)
            latents = denoise(
                self,
                latents,
                steps,
                condition,
                step_kwargs,
                step_end,
                extra_channels,
                None if self._reads_mask else restore,
            )

        # 5. Decode
        output = self._output(latents, output_type, return_dict, generator, image=image[rows], mask=mask)
        if crop is not None:
            made = output[0]
            made[:] = [self.image_processor.apply_overlay(mask_image, original, x, crop) for x in made]
        return output

    def _crop_region(self, image, mask_image, padding: int | None, output_type: str, width: int, height: int):
        """`(x1, y1, x2, y2)` around the mask, of the shape of the result; None if the whole image is worked on."""
        if padding is None:
            return None
        if not all(isinstance(x, PIL.Image.Image) for x in (image, mask_image)) or output_type != "pil":
            raise ValueError(
                "`padding_mask_crop` needs one PIL image, one PIL mask and `output_type='pil'`, got "
                f"{type(image).__name__}, {type(mask_image).__name__} and {output_type!r}."
            )
        return self.image_processor.get_crop_region(mask_image.convert("L"), width, height, pad=padding)

    @property
    def _input_channels(self) -> tuple[int, ...]:
        return (self._channels, 2 * self._channels + 1)

    @property
    def _reads_mask(self) -> bool:
        return self.unet.config.in_channels != self._channels

    def _preprocess_mask(
        self, mask: PipelineImageInput, num_prompts: int, num_images_per_prompt: int, **size: Any
    ) -> torch.Tensor:
        """`[B, 1, height, width]` of 0 and 1, one per image that is made."""
        if mask is None:
            raise ValueError("`mask_image` must be given: white where the image is made anew, black where it stays.")
        processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )
        masks = processor.preprocess(mask, **size)
        num_images = num_prompts * num_images_per_prompt
        if len(masks) not in (1, num_prompts, num_images):
            raise ValueError(f"`mask_image` must be one or one per image, got {len(masks)} for {num_images} images.")
        return masks[expansion(len(masks), num_prompts, num_images_per_prompt)]
