"""What training starts from: a DIR-7 pipeline, a Stable Diffusion pipeline that is converted, or nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion import convert_unet
from ..generation.config import ModelConfig
from ..generation.loading import download
from ..hub import FROM_SCRATCH
from ..models import DIR7UNet2DConditionModel
from ..pipelines import DIR7Pipeline
from ..pipelines.prompt_encoding import ENDOFTEXT
from ..presets import load_preset
from ..training import Models
from ..training.text import fit_tokenizer, make_text_encoder
from .base_checks import PREDICTION, check_index, check_unet, prediction_of
from .config import FUSIONS, ModelSettings

COSINE = {"beta_schedule": "squaredcos_cap_v2"}  # of pixels
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of latents
WIDEST_MADE_TEXT_ENCODER = 256
MADE_TEXT_LAYERS = 2


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Args:
        models: in float32, what is trained and what it is trained with.
        sampler: the scheduler that draws with them.
        base_model: Hub id or folder of the pipeline, or `FROM_SCRATCH`.
        converted: whether the U-Net was a stock one.
        resolution: in pixels, of what is drawn.
    """

    models: Models
    sampler: SchedulerMixin
    base_model: str
    converted: bool
    resolution: int

    def pipeline(self) -> DIR7Pipeline:
        """A pipeline of the models as they are; it shares them."""
        models = self.models
        return DIR7Pipeline(
            vae=models.vae,
            text_encoder=models.text_encoder,
            tokenizer=models.tokenizer,
            unet=models.unet,
            scheduler=self.sampler,
            prepend_endoftext=models.text_prefix == ENDOFTEXT,
        )


class PipelineBase:
    """A pipeline to train on with.

    Args:
        seed: of what a converted U-Net has and a stock one has not: a run that goes on, and every process, makes the
            same.
        channels, multiple: of the images that it takes: 1 or 3, and what their sides are a multiple of.
        resolution: in pixels, what it was made for, if it says so.

    Raises:
        OSError: it cannot be found or read.
        ValueError: it is none that can be trained here; the message says which can.
    """

    def __init__(self, settings: ModelSettings, seed: int):
        assert settings.model is not None
        self.settings = settings
        folder = Path(settings.model)
        if not folder.is_dir():
            folder = download(ModelConfig(settings.model, settings.revision, settings.variant))
        self.converted = check_index(settings.model, folder) != DIR7UNet2DConditionModel.__name__
        options: dict[str, Any] = {"variant": settings.variant, "dtype": torch.float32, "use_safetensors": True}
        if self.converted:
            stock = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
            torch.manual_seed(seed)
            options |= {"unet": convert_unet(stock, settings.fusion or FUSIONS[0])}
        self.pipeline = DIR7Pipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None, **options)
        check_unet(settings, self.pipeline)
        factor = self.pipeline.vae_scale_factor
        unet = self.pipeline.unet.config
        self.channels = unet.in_channels if self.pipeline.vae is None else self.pipeline.vae.config.in_channels
        self.multiple = factor * 2 ** (len(unet.block_out_channels) - 1)
        self.resolution = resolution_of(self.pipeline)

    def start(self, captions: Callable[[], Iterable[str]], resolution: int, seed: int) -> Start:
        """Everything that training starts from; no captions are asked for."""
        pipeline, settings = self.pipeline, self.settings
        assert settings.model is not None
        prepend = pipeline.config.prepend_endoftext
        if settings.prepend_endoftext is not None:
            prepend = settings.prepend_endoftext
        elif self.converted:  # its text encoder, and what its U-Net knows, come from prompts without it
            prepend = False
        training, sampler = schedulers_of(pipeline.scheduler, settings, in_pixels=pipeline.vae is None)
        models = Models(
            unet=pipeline.unet,
            text_encoder=pipeline.text_encoder,
            tokenizer=pipeline.tokenizer,
            scheduler=training,
            text_prefix=ENDOFTEXT if prepend else "",
            vae=pipeline.vae,
        )
        return Start(models, sampler, settings.model, self.converted, resolution)


class ScratchBase:
    """An untrained U-Net to be made, and what goes with it; arguments as of [`PipelineBase`].

    Raises:
        OSError, ValueError: VAE or text encoder cannot be found or read.
    """

    def __init__(self, settings: ModelSettings, channels: int):
        assert settings.from_scratch is not None
        self.settings = settings
        self.config = load_preset(settings.from_scratch)
        self.vae = None if settings.vae is None else load_vae(settings.vae)
        self.text = None if settings.text_encoder is None else load_text_encoder(settings.text_encoder)
        self.factor = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels = channels if self.vae is None else self.vae.config.in_channels
        self.multiple = self.factor * 2 ** (len(self.config["block_out_channels"]) - 1)
        self.resolution = self.config["sample_size"] * self.factor

    def start(self, captions: Callable[[], Iterable[str]], resolution: int, seed: int) -> Start:
        """Everything that training starts from, made with `seed`.

        Args:
            captions: of the data, some thousands: what a tokenizer is fitted on if one is made.
        """
        torch.manual_seed(seed)
        settings = self.settings
        if self.text is None:
            width = min(self.config["cross_attention_dim"], WIDEST_MADE_TEXT_ENCODER)
            tokenizer = fit_tokenizer(captions())
            text_encoder = make_text_encoder(tokenizer, width, MADE_TEXT_LAYERS)
        else:
            text_encoder, tokenizer = self.text
        has_endoftext = ENDOFTEXT in tokenizer.get_vocab()
        prepend = has_endoftext if settings.prepend_endoftext is None else settings.prepend_endoftext
        if prepend and not has_endoftext:
            raise ValueError(f"`prepend_endoftext` needs a tokenizer with {ENDOFTEXT}; leave it out.")
        channels = self.channels if self.vae is None else self.vae.config.latent_channels
        unet = DIR7UNet2DConditionModel.from_config(
            self.config,
            sample_size=resolution // self.factor,
            in_channels=channels,
            out_channels=channels,
            cross_attention_dim=text_encoder.config.hidden_size,
            crosswkv_fusion=settings.fusion or FUSIONS[0],
        )
        training, sampler = new_schedulers(settings, in_pixels=self.vae is None)
        models = Models(unet, text_encoder, tokenizer, training, ENDOFTEXT if prepend else "", self.vae)
        return Start(models, sampler, FROM_SCRATCH, False, resolution)


def resolution_of(pipeline: DIR7Pipeline) -> int | None:
    """In pixels, the longer side of what a pipeline draws by itself; None if its U-Net does not say."""
    size = pipeline.unet.config.sample_size
    longer = size if isinstance(size, int | None) else max(size)
    return None if longer is None else pipeline.vae_scale_factor * longer


def load_vae(place: str) -> diffusers.AutoencoderKL:
    """A VAE, or that of a pipeline."""
    options = {"subfolder": "vae"} if holds(place, "vae") else {}
    vae = diffusers.AutoModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **options)
    if not hasattr(vae.config, "latent_channels"):
        raise ValueError(f"`--vae` must lead to a VAE of images, got {type(vae).__name__} at {place}.")
    return vae.eval()


def load_text_encoder(place: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text encoder with its tokenizer, or those of a pipeline."""
    in_pipeline = holds(place, "text_encoder")
    options, of_tokenizer = ({"subfolder": name} if in_pipeline else {} for name in ("text_encoder", "tokenizer"))
    config = AutoConfig.from_pretrained(place, **options)
    cls = transformers.CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
    encoder = cls.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **options)
    return encoder.eval(), AutoTokenizer.from_pretrained(place, **of_tokenizer)


def holds(place: str, component: str) -> bool:
    """Whether a folder or a repository is a pipeline with such a component."""
    if Path(place).is_dir():
        return Path(place, component).is_dir()
    return HfApi().file_exists(place, f"{component}/config.json")


def new_schedulers(settings: ModelSettings, in_pixels: bool) -> tuple[SchedulerMixin, SchedulerMixin]:
    """For training from scratch and for drawing with the result."""
    prediction = settings.prediction_type or "v_prediction"
    if prediction == "flow":
        flow = FlowMatchEulerDiscreteScheduler()
        return flow, flow
    noise = {**(COSINE if in_pixels else STABLE_DIFFUSION), PREDICTION: prediction, "clip_sample": False}
    if settings.zero_terminal_snr:
        noise |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDPMScheduler(**noise), sampler_of(noise, in_pixels)


def schedulers_of(
    scheduler: SchedulerMixin, settings: ModelSettings, in_pixels: bool
) -> tuple[SchedulerMixin, SchedulerMixin]:
    """For training on with a pipeline and for drawing with the result, from the pipeline's own.

    Raises:
        ValueError: epsilon and a noise schedule that ends in noise alone.
    """
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    prediction = settings.prediction_type or prediction_of(scheduler)
    if prediction == "flow":
        flow = scheduler if is_flow else FlowMatchEulerDiscreteScheduler()
        return flow, flow
    if is_flow:
        return new_schedulers(settings, in_pixels)
    changes: dict[str, Any] = {PREDICTION: prediction}
    if settings.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    training = DDPMScheduler.from_config(scheduler.config, **changes)
    if training.config.rescale_betas_zero_snr and prediction == "epsilon":
        raise ValueError(
            "`zero_terminal_snr` needs `prediction_type` v_prediction or sample, and this pipeline predicts epsilon; "
            "say --prediction_type v_prediction, and train long enough."
        )
    draws_images = not isinstance(scheduler, diffusers.PNDMScheduler)  # from predicted ones
    if not settings.zero_terminal_snr and (draws_images or prediction != "sample"):
        return training, type(scheduler).from_config(scheduler.config, **changes)
    return training, sampler_of({**scheduler.config, **changes}, in_pixels)


def sampler_of(noise: dict[str, Any], in_pixels: bool) -> SchedulerMixin:
    """A scheduler that draws in few steps."""
    if noise.get("rescale_betas_zero_snr"):  # DPM-Solver divides by what is zero there
        return diffusers.DDIMScheduler.from_config(noise)
    own = {"thresholding": True, "sample_max_value": 1.0} if in_pixels else {}
    return diffusers.DPMSolverMultistepScheduler.from_config(noise, **own)
