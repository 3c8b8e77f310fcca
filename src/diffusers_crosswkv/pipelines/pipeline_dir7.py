"""Text to image with DIR-7: encode the prompt once into a state, denoise, decode."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..models import DIR7UNet2DConditionModel, PromptState
from ..models.text_windows import encode_texts
from ..remote_code import PIPELINE_FILE, write_remote_code

ENDOFTEXT = "<|endoftext|>"
CALLBACK_TENSORS = ("latents",)


class DIR7Pipeline(DiffusionPipeline):
    """Text to image with a U-Net whose cross-attention is CrossWKV.

    Args:
        text_encoder: turns token ids into hidden states `[B, L, D_q]`.
        tokenizer: the text encoder's.
        unet: the denoiser; its `cross_attention_dim` is the text encoder's width.
        scheduler: any scheduler of Diffusers.
        vae: decodes latents; None if the U-Net works on pixels in [-1, 1].
        prepend_endoftext: put `<|endoftext|>` before every prompt, as the paper does (section 4.4).
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar = ["vae"]
    _callback_tensor_inputs: ClassVar = list(CALLBACK_TENSORS)

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: DIR7UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        vae: AutoencoderKL | None = None,
        prepend_endoftext: bool = True,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(prepend_endoftext=prepend_endoftext)
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

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

    def encode_prompt(self, prompt: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The text encoder's hidden states `[B, L, D_q]` and their mask `[B, L]` (1 = keep).

        A prompt that is longer than the text encoder's window is encoded in windows; nothing is cut off.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if self.config.prepend_endoftext:
            prompts = [ENDOFTEXT + text for text in prompts]
        return encode_texts(self.text_encoder, self.tokenizer, prompts, self._execution_device)

    @torch.no_grad()
    def encode_prompt_state(
        self, prompt: str | Sequence[str] | None, prompt_state: PromptState | None = None
    ) -> PromptState:
        """The state of `prompt`, or of `prompt_state` continued by it; of constant size whatever the prompt's length.

        Raises:
            ValueError: there is neither a prompt nor a state, or the state is of another model.
        """
        if prompt is None:
            if prompt_state is None:
                raise ValueError("`prompt` or `prompt_state` must be given, got neither.")
            return prompt_state
        prompt_embeds, mask = self.encode_prompt(prompt)
        if prompt_state is not None:
            prompt_state = prompt_state.to(prompt_embeds.device)
        return self.unet.encode_prompt(prompt_embeds, mask, prompt_state)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_state: PromptState | None = None,
        negative_prompt_state: PromptState | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DIR7Pipeline", int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> ImagePipelineOutput | tuple:
        """Make `num_images_per_prompt` images per prompt.

        Args:
            prompt: one or several; may be omitted if `prompt_state` is given, else it continues that state.
            height, width: in pixels, multiples of the VAE's factor; the size that the U-Net was trained on if None.
            num_inference_steps: denoising steps, >= 1.
            guidance_scale: classifier-free guidance; 1 and less turn it off and halve the work.
            negative_prompt: what guidance leads away from, "" if None; one, or one per prompt.
            num_images_per_prompt: >= 1.
            generator: the source of the noise. A list, one per image, makes an image depend on its own generator
                alone, not on its place in the batch.
            latents: starting noise `[B * n, C, height, width]` in the place of the generator's.
            prompt_state, negative_prompt_state: what [`~DIR7Pipeline.encode_prompt_state`] returned or
                `PromptState.load` read.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; what it returns
                under `latents` replaces them.
            callback_on_step_end_tensor_inputs: names of the tensors it gets; `latents` is there.

        Raises:
            ValueError: an argument does not fit; the message says what would.
        """
        # 1. Check inputs
        height = self._default_size(0) if height is None else height
        width = self._default_size(1) if width is None else width
        self.check_inputs(
            prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            negative_prompt,
            num_images_per_prompt,
            prompt_state,
            negative_prompt_state,
            output_type,
            callback_on_step_end_tensor_inputs,
        )

        # 2. Encode the prompts, once for all steps
        guided = guidance_scale > 1
        text = self._encode_all(
            prompt, negative_prompt, prompt_state, negative_prompt_state, guided, num_images_per_prompt
        )
        num_images = self._num_prompts(prompt, prompt_state) * num_images_per_prompt

        # 3. Timesteps and starting noise
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        shape = (num_images, self.unet.config.in_channels, *(n // self.vae_scale_factor for n in (height, width)))
        latents = self.prepare_latents(shape, generator, latents)
        step_kwargs = self.prepare_step_kwargs(generator)

        # 4. Denoise
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_input = torch.cat([latents] * 2) if guided else latents
                model_input = self.scheduler.scale_model_input(model_input, t)
                noise_pred = self.unet(model_input, t, **text, return_dict=False)[0]
                if guided:
                    negative, positive = noise_pred.chunk(2)
                    noise_pred = negative + guidance_scale * (positive - negative)
                latents = self.scheduler.step(noise_pred, t, latents, **step_kwargs, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)
                if (i + 1) % self.scheduler.order == 0 or i + 1 == len(self.scheduler.timesteps):
                    progress_bar.update()

        # 5. Decode
        images = latents if output_type == "latent" else self.decode_latents(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_inputs(
        self,
        prompt,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt,
        num_images_per_prompt: int,
        prompt_state: PromptState | None,
        negative_prompt_state: PromptState | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise ValueError for the first argument that does not fit; see `__call__`."""
        for name, value, state in (
            ("prompt", prompt, prompt_state),
            ("negative_prompt", negative_prompt, negative_prompt_state),
        ):
            texts = [value] if isinstance(value, str) else value
            if texts is not None and (
                not isinstance(texts, list | tuple) or not texts or any(not isinstance(text, str) for text in texts)
            ):
                raise ValueError(f"`{name}` must be a string or a non-empty list of strings, got {value!r}.")
            if state is not None and not isinstance(state, self.unet.prompt_state_class):
                raise ValueError(f"`{name}_state` must be a PromptState, got {type(state).__name__}.")
            if texts is not None and state is not None and len(state) not in (1, len(texts)):
                raise ValueError(
                    f"`{name}` continues `{name}_state`, which must hold one state or one per prompt, "
                    f"got {len(state)} states and {len(texts)} prompts."
                )
        if self.unet.config.crosswkv_fusion == "paper" and (prompt_state or negative_prompt_state) is not None:
            raise ValueError("With `crosswkv_fusion='paper'` there are no prompt states; give `prompt` instead.")
        if prompt is None and prompt_state is None:
            raise ValueError("`prompt` or `prompt_state` must be given, got neither.")
        num_prompts = self._num_prompts(prompt, prompt_state)
        num_negative = self._num_prompts(negative_prompt, negative_prompt_state)
        if num_negative not in (1, num_prompts):
            raise ValueError(
                f"There must be one negative prompt or one per prompt, got {num_negative} and {num_prompts} prompts."
            )
        for name, size in (("height", height), ("width", width)):
            if not isinstance(size, int) or size < 1 or size % self.vae_scale_factor:
                raise ValueError(f"`{name}` must be a positive multiple of {self.vae_scale_factor}, got {size}.")
        for name, count in (
            ("num_inference_steps", num_inference_steps),
            ("num_images_per_prompt", num_images_per_prompt),
        ):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {count!r}.")
        if not abs(guidance_scale) < float("inf"):
            raise ValueError(f"`guidance_scale` must be finite, got {guidance_scale}; 1 turns guidance off.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be pil, np, pt or latent, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(CALLBACK_TENSORS)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may name {', '.join(CALLBACK_TENSORS)}, got {sorted(unknown)}."
            )

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Starting noise `[B, C, height, width]` at the scheduler's scale.

        Raises:
            ValueError: there are not as many generators as images, or given latents do not fit or are not finite.
        """
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"`generator` must be one or one per image, got {len(generator)} for {shape[0]} images.")
        if latents is None:
            latents = randn_tensor(shape, generator, device=self._execution_device, dtype=self.unet.dtype)
        elif latents.shape != shape or not latents.isfinite().all():
            finite = "finite" if latents.isfinite().all() else "not finite"
            raise ValueError(f"`latents` must be finite and {list(shape)}, got {list(latents.shape)}, {finite}.")
        return latents.to(self._execution_device, self.unet.dtype) * self.scheduler.init_noise_sigma

    def prepare_step_kwargs(self, generator) -> dict[str, Any]:
        """What this scheduler's `step` takes besides the prediction.

        A scheduler that clips its estimate of the image must derive the noise from the clipped estimate. DDIM's
        default does not: in pixel space, guidance then drives every image into saturation.
        """
        parameters = inspect.signature(self.scheduler.step).parameters
        kwargs: dict[str, Any] = {"generator": generator} if "generator" in parameters else {}
        config = self.scheduler.config
        if "use_clipped_model_output" in parameters and (config.get("clip_sample") or config.get("thresholding")):
            kwargs["use_clipped_model_output"] = True
        return kwargs

    def decode_latents(self, latents: torch.Tensor, output_type: str):
        """Images in [0, 1]: `pil` a list, `np` `[B, height, width, C]`, `pt` `[B, C, height, width]`."""
        if self.vae is not None:
            shift = self.vae.config.get("shift_factor") or 0
            latents = latents / self.vae.config.scaling_factor + shift
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return self.image_processor.postprocess(latents.float(), output_type=output_type)

    def _default_size(self, axis: int) -> int:
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[axis]) * self.vae_scale_factor

    @staticmethod
    def _num_prompts(prompt: str | Sequence[str] | None, prompt_state: PromptState | None) -> int:
        if prompt is None:
            return 1 if prompt_state is None else len(prompt_state)
        return 1 if isinstance(prompt, str) else len(prompt)

    def _encode_all(
        self, prompt, negative_prompt, prompt_state, negative_prompt_state, guided: bool, num_images_per_prompt: int
    ) -> dict[str, Any]:
        """The U-Net's text arguments for the whole batch: negative prompts, if `guided`, before the others."""
        if negative_prompt is None and negative_prompt_state is None:
            negative_prompt = ""
        num_prompts = self._num_prompts(prompt, prompt_state)
        repeats = [i for i in range(num_prompts) for _ in range(num_images_per_prompt)]
        if self.unet.config.crosswkv_fusion == "paper":
            return self._encode_without_state(prompt, negative_prompt, guided, repeats)
        state = self._expanded_state(prompt, prompt_state, num_prompts)[repeats]
        if guided:
            negative = self._expanded_state(negative_prompt, negative_prompt_state, num_prompts)[repeats]
            state = self.unet.prompt_state_class.cat([negative, state])
        return {"encoder_hidden_states": None, "cross_attention_kwargs": {"prompt_state": state}}

    def _expanded_state(self, prompt, prompt_state: PromptState | None, num_prompts: int) -> PromptState:
        texts = [prompt] if isinstance(prompt, str) else prompt
        if texts is not None and prompt_state is not None and len(prompt_state) != len(texts):
            prompt_state = prompt_state[[0] * len(texts)]
        state = self.encode_prompt_state(texts, prompt_state).to(self._execution_device)
        return state[[0] * num_prompts] if len(state) == 1 else state

    def _encode_without_state(self, prompt, negative_prompt, guided: bool, repeats: list[int]) -> dict[str, Any]:
        """`paper` fusion has no prompt state: the text goes to the U-Net as it is, in every step."""
        positive = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
        if len(negative) == 1:
            negative = negative * len(positive)
        texts = [group[i] for group in ((negative, positive) if guided else (positive,)) for i in repeats]
        prompt_embeds, mask = self.encode_prompt(texts)
        return {"encoder_hidden_states": prompt_embeds, "encoder_attention_mask": mask}
