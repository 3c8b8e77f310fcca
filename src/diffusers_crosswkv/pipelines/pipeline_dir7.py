"""Text to image with DIR-7: encode the prompt once into a state, denoise, decode."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    StableDiffusionPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..models import DIR7UNet2DConditionModel, PromptState
from ..remote_code import PIPELINE_FILE, write_remote_code
from .checks import (
    check_counts,
    check_cross_attention_kwargs,
    check_guidance,
    check_ip_adapter,
    check_noise,
    check_output,
    check_size,
)
from .denoising import CALLBACK_TENSORS, StepEnd, denoise, step_arguments
from .prompt_encoding import ENDOFTEXT, PromptEncodingMixin
from .prompts import Condition, PromptInput

logger = logging.get_logger(__name__)

COMPONENTS = (
    "vae",
    "text_encoder",
    "tokenizer",
    "unet",
    "scheduler",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)
StepCallback: TypeAlias = Callable[["DIR7Pipeline", int, Any, dict], dict]


def with_components(init):
    """Give `init` a signature in which no component has a default.

    What has one, `DiffusionPipeline.from_pretrained` takes for an option, and passes over what its caller gave for it.
    """
    signature = inspect.signature(init)
    places = [
        p.replace(kind=p.KEYWORD_ONLY, default=p.empty if name in COMPONENTS else p.default)
        for name, p in signature.parameters.items()
        if name != "self"
    ]
    init.__signature__ = signature.replace(parameters=[signature.parameters["self"], *places])
    return init


class DIR7Pipeline(PromptEncodingMixin, StableDiffusionPipeline):
    """Text to image with a U-Net whose cross-attention is CrossWKV.

    It does what `StableDiffusionPipeline` does (LoRA, textual inversion, IP-Adapter, offload, FreeU, ...), and more:
    prompts of any length, prompt states, and text encoders other than CLIP's.

    Components may be left out: `vae` in pixel space, `text_encoder` and `tokenizer` where all prompts are states.
    `from_pipe` makes another pipeline of the same components and settings; `**pipe.components` has no settings.

    Args:
        vae: decodes latents; None if the U-Net works on pixels in [-1, 1].
        text_encoder: turns token ids into hidden states `[B, L, D_q]`: CLIP's, T5, mT5, UMT5, XLM-R, or any other
            model of transformers that returns `last_hidden_state`.
        tokenizer: the text encoder's.
        unet: the denoiser; its `cross_attention_dim` is the text encoder's width.
        scheduler: any scheduler of Diffusers.
        safety_checker: blackens what it takes for harmful; off if None.
        feature_extractor: prepares images for the safety checker and the image encoder.
        image_encoder: encodes the images of an IP-Adapter.
        prepend_endoftext: put `<|endoftext|>` before every prompt, as the paper does (section 4.4); None does where
            the tokenizer has that token.

    Raises:
        ValueError: the U-Net is not a DIR-7, or the tokenizer lacks `<|endoftext|>` and it was asked for.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar = [name for name in COMPONENTS if name not in ("unet", "scheduler")]
    _exclude_from_cpu_offload: ClassVar = ["safety_checker"]
    _callback_tensor_inputs: ClassVar = list(CALLBACK_TENSORS)

    @with_components
    def __init__(
        self,
        vae: AutoencoderKL | AsymmetricAutoencoderKL | AutoencoderTiny | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        unet: DIR7UNet2DConditionModel | None = None,
        scheduler: KarrasDiffusionSchedulers | None = None,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        prepend_endoftext: bool | None = None,
    ):
        DiffusionPipeline.__init__(self)  # not the parent's: it rewrites schedulers and demands a safety checker
        if unet is not None and not hasattr(unet, "prompt_state_class"):
            raise ValueError(
                f"`unet` must be a DIR7UNet2DConditionModel, got {type(unet).__name__}; turn it into one with "
                "`diffusers_crosswkv.convert_unet(unet)` and train it, or use StableDiffusionPipeline."
            )
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("`safety_checker` needs a `feature_extractor`, got None; pass both or neither.")
        self.register_modules(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        has_endoftext = tokenizer is not None and ENDOFTEXT in tokenizer.get_vocab()
        if prepend_endoftext and not has_endoftext and tokenizer is not None:
            raise ValueError(
                f"`prepend_endoftext` needs a tokenizer with {ENDOFTEXT}, got {type(tokenizer).__name__} without; "
                "pass prepend_endoftext=False."
            )
        self.register_to_config(prepend_endoftext=has_endoftext if prepend_endoftext is None else prepend_endoftext)
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        grayscale = vae is None and unet is not None and unet.config.in_channels == 1
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=self._channels if self._knows_latents else 0,  # what passes for latents
            do_convert_grayscale=grayscale,
            do_convert_rgb=not grayscale,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in Diffusers, but weights that are not safetensors are read with `use_safetensors=False` only."""
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_config(self, save_directory, *args, **kwargs) -> None:
        """As in Diffusers; beside `model_index.json` lies the code that runs on a machine without this package."""
        write_remote_code(type(self), save_directory, PIPELINE_FILE)
        super().save_config(save_directory, *args, **kwargs)

    @property
    def _input_channels(self) -> tuple[int, ...]:
        """How many channels the U-Net may read."""
        return (self._channels,)

    @property
    def _channels(self) -> int:
        """Channels of what is denoised: latents, or pixels."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.latent_channels

    @property
    def _knows_latents(self) -> bool:
        """Whether latents can be told from images: by their number of channels."""
        return self.vae is not None and self.vae.config.latent_channels != self.vae.config.in_channels

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
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
        """Make `num_images_per_prompt` images per prompt.

        Args:
            prompt: one or several, of any length. May be omitted if `prompt_embeds` or `prompt_state` is given; with
                `prompt_state` it continues that state.
            height, width: in pixels, multiples of the VAE's factor; the size that the U-Net was trained on if None.
            num_inference_steps: denoising steps, >= 1.
            timesteps, sigmas: the scheduler's own steps in the place of evenly spaced ones, where it takes them.
            guidance_scale: classifier-free guidance; 1 and less turn it off and halve the work.
            negative_prompt: what guidance leads away from, "" if nothing is given; one, or one per prompt.
            num_images_per_prompt: >= 1.
            eta: 0 to 1, how much noise DDIM adds in each step; other schedulers ignore it.
            generator: the source of the noise. A list, one per image, makes an image depend on its own generator
                alone, not on its place in the batch.
            latents: starting noise `[B * n, C, height, width]`, in the VAE's size, in the place of the generator's.
            prompt_embeds, negative_prompt_embeds: `[B, L, D_q]` in the place of the texts; L may differ.
            prompt_attention_mask, negative_prompt_attention_mask: `[B, L]` of the embeddings, 1 = keep; all if None.
            prompt_state, negative_prompt_state: what [`~DIR7Pipeline.encode_prompt_state`] returned or
                `PromptState.load` read: one, or one per prompt.
            ip_adapter_image, ip_adapter_image_embeds: for loaded IP-Adapters, as in `StableDiffusionPipeline`.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: return a `StableDiffusionPipelineOutput` instead of a tuple.
            cross_attention_kwargs: `{"scale": s}` scales a loaded LoRA, in the text encoder and the U-Net.
            guidance_rescale: 0 to 1, how far guided predictions get back the contrast of unguided ones
                (arXiv:2305.08891, section 3.4).
            clip_skip: how many of the last layers of a CLIP text encoder are left out.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; what it returns
                under `latents` and `prompt_state` replaces them. `pipe._interrupt = True` ends the loop,
                `pipe._guidance_scale = 0` turns guidance off from there on.
            callback_on_step_end_tensor_inputs: names of what it gets: `latents`, `prompt_state` (in `paper` fusion
                text tokens; `prompt_embeds` means the same), the negative prompts' rows first.

        Returns:
            `images`, and `nsfw_content_detected` if there is a safety checker.

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
        check_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        shape = self._latents_shape(len(positive) * num_images_per_prompt, height, width)
        generator = check_noise(generator, latents, shape)
        self._set_guidance(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)

        with self._lora_scaled(cross_attention_kwargs):
            # 2. Encode the prompts, once for all steps
            condition = self._condition(positive, negative, num_images_per_prompt)
            condition = self._with_images(condition, ip_adapter_image, ip_adapter_image_embeds, shape[0])

            # 3. Timesteps and starting noise
            steps, _ = retrieve_timesteps(
                self.scheduler, num_inference_steps, self._execution_device, timesteps, sigmas
            )
            latents = self.prepare_latents(shape, generator, latents)

            # 4. Denoise
            step_kwargs = step_arguments(self, generator, eta)
            latents = denoise(self, latents, steps, condition, step_kwargs, step_end)

        # 5. Decode
        return self._output(latents, output_type, return_dict, generator)

    def check_inputs(
        self,
        positive: PromptInput,
        negative: PromptInput,
        num_inference_steps: int,
        num_images_per_prompt: int,
        output_type: str,
        step_end: StepEnd,
    ) -> None:
        """Raise ValueError for the first argument that does not fit; see `__call__`."""
        channels = self.unet.config.in_channels
        if channels not in self._input_channels:
            raise ValueError(
                f"`unet` must read {' or '.join(map(str, self._input_channels))} channels here, got {channels}; "
                "one that reads a mask as well is for DIR7InpaintPipeline."
            )
        kind = self.unet.config.addition_embed_type
        if kind not in (None, "text"):
            raise ValueError(
                f"`unet` needs more than text (its `addition_embed_type` is {kind!r}); use it in the stock pipeline "
                "of that kind, such as StableDiffusionXLPipeline."
            )
        for side in (positive, negative):
            side.check(self.unet)
        if not len(positive):
            raise ValueError("`prompt`, `prompt_embeds` or `prompt_state` must be given, got none.")
        if len(negative) not in (0, 1, len(positive)):
            raise ValueError(
                "There must be one negative prompt or one per prompt, "
                f"got {len(negative)} and {len(positive)} prompts."
            )
        check_counts(num_inference_steps, num_images_per_prompt)
        check_output(output_type, step_end.tensors, CALLBACK_TENSORS)
        if self.vae is not None and self.scheduler.config.get("clip_sample"):
            logger.warning("The scheduler's `clip_sample` is switched off: latents go far beyond 1.")
            self.scheduler.register_to_config(clip_sample=False)

    def prepare_latents(
        self, shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, latents=None
    ) -> torch.Tensor:
        """Starting noise of `shape`, `[B, C, height, width]`, at the scheduler's scale."""
        if latents is None:
            latents = randn_tensor(shape, generator, device=self._execution_device, dtype=self.unet.dtype)
        latents = latents.to(self._execution_device, self.unet.dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1)  # flow matching schedulers have none

    def decode_latents(self, latents: torch.Tensor, generator=None, **known: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, height, width]` in [-1, 1], but for rounding, of latents at the U-Net's scale.

        A VAE in float16 that overflows, as many do, decodes once more in float32. `known`, `image` and `mask` of an
        inpainting, goes to a VAE that takes them.
        """
        if self.vae is None:
            return latents.float()
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0)
        options = {"return_dict": False, "generator": generator}
        if isinstance(self.vae, AsymmetricAutoencoderKL):
            options |= {name: x.to(latents.device, self.vae.dtype) for name, x in known.items()}
        images = self.vae.decode(latents.to(self.vae.dtype), **options)[0]
        if self.vae.dtype == torch.float16 and latents.isfinite().all() and not images.isfinite().all():
            logger.warning(
                "The VAE has overflowed in float16 and decodes in float32; `vae` in float32 or bfloat16 would not."
            )
            self.vae.to(torch.float32)
            images = self.vae.decode(latents.float(), **options)[0]
            self.vae.to(torch.float16)
        return images.float()

    def _output(self, latents: torch.Tensor, output_type: str, return_dict: bool, generator, **known: torch.Tensor):
        images, flagged = latents, None
        if output_type != "latent":
            images = self.decode_latents(latents, generator, **known)
            if not images.isfinite().all():
                logger.warning("Some images are not finite and come out black; run the U-Net in bfloat16 or float32.")
            images, flagged = self.run_safety_checker(images, self._execution_device, self.unet.dtype)
            denormalize = [True] * len(images) if flagged is None else [not x for x in flagged]
            images = self.image_processor.postprocess(images, output_type, denormalize)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, flagged
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)

    def _size(self, height: int | None, width: int | None, latents: torch.Tensor | None = None) -> tuple[int, int]:
        """What was asked for, or else what `latents` have, or else what the U-Net was trained on; checked."""
        size = self.unet.config.sample_size if latents is None else tuple(latents.shape[-2:])
        if size is None and None in (height, width):
            raise ValueError("`height` and `width` must be given: the U-Net's config has no `sample_size`.")
        defaults = (size, size) if isinstance(size, int) or size is None else size
        height, width = (
            default * self.vae_scale_factor if given is None else given
            for given, default in zip((height, width), defaults, strict=True)
        )
        check_size(height, width, self.vae_scale_factor)
        return int(height), int(width)

    def _latents_shape(self, num_images: int, height: int, width: int) -> tuple[int, int, int, int]:
        return (num_images, self._channels, height // self.vae_scale_factor, width // self.vae_scale_factor)

    def _step_end(self, callback: StepCallback | None, tensors: Sequence[str]) -> StepEnd:
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            tensors = callback.tensor_inputs
        return StepEnd(callback, tensors)

    def _set_guidance(self, scale: float, rescale: float, clip_skip: int | None, cross_attention_kwargs) -> None:
        check_guidance(scale, rescale)
        check_cross_attention_kwargs(cross_attention_kwargs)
        self._guidance_scale, self._guidance_rescale = scale, rescale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        self._interrupt = False

    def _with_images(self, condition: Condition, image, image_embeds, num_images: int) -> Condition:
        if image is None and image_embeds is None:
            return condition
        embeds = self.prepare_ip_adapter_image_embeds(
            image, image_embeds, self._execution_device, num_images, self.do_classifier_free_guidance
        )
        return replace(condition, image_embeds=tuple(embeds))
