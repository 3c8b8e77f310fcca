"""Which pipelines can be trained on with, and which settings go with them."""

import json
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

from ..generation.config import PIPELINE_INDEX
from ..pipelines import DIR7Pipeline
from .config import ModelSettings

PREDICTION = "prediction_type"
# Of a U-Net's config, with what this training can serve.
EMBEDDINGS = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
}


def check_index(name: str, folder: Path) -> str:
    """The U-Net's class in a pipeline's folder.

    Raises:
        ValueError: the pipeline has no such U-Net, or more than one text encoder.
    """
    index = json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8"))
    there = {key: value[1] for key, value in index.items() if isinstance(value, list) and value[1] is not None}
    if "unet" not in there:
        raise ValueError(
            f"{name} must be a pipeline with a U-Net, DIR-7's or Stable Diffusion's, got {index['_class_name']} with "
            f"{', '.join(sorted(there))}."
        )
    if "text_encoder_2" in there:
        raise ValueError(
            f"{name} has two text encoders ({index['_class_name']}); training here takes one: Stable Diffusion 1 "
            "and 2, or DIR-7."
        )
    missing = [key for key in ("text_encoder", "tokenizer") if key not in there]
    if missing:
        raise ValueError(f"{name} must have a text encoder and a tokenizer, but has no {' and no '.join(missing)}.")
    return there["unet"]


def check_unet(settings: ModelSettings, pipeline: DIR7Pipeline) -> None:
    """Refuse a U-Net that reads more than an image's noise and a text, and a fusion that is not its own.

    Raises:
        ValueError: with what it reads, or the fusion that it has.
    """
    unet, vae = pipeline.unet.config, pipeline.vae
    channels = unet.out_channels if vae is None else vae.config.latent_channels
    if unet.in_channels != channels:
        raise ValueError(
            f"{settings.model} must have a U-Net that reads {channels} channels, got {unet.in_channels}: one for "
            "inpainting or the like, which is not trained here; take the text-to-image pipeline that it was made from."
        )
    for name, served in EMBEDDINGS.items():
        if unet.get(name) not in served:
            raise ValueError(
                f"{settings.model} must have a U-Net that reads a text alone, got `{name}` {unet[name]!r}; training "
                "here has nothing to give it."
            )
    if settings.fusion not in (None, unet.crosswkv_fusion):
        raise ValueError(
            f"`fusion` is of untrained and of converted U-Nets; {settings.model} has {unet.crosswkv_fusion}, got "
            f"{settings.fusion}. Leave it out, or start from a Stable Diffusion pipeline or --from_scratch."
        )


def check_kept(settings: ModelSettings, pipeline: DIR7Pipeline, weights: str) -> None:
    """Refuse adapters and states that would not fit the pipeline which they are used with.

    Raises:
        ValueError: with the setting that is not the pipeline's own.
    """
    own = {
        PREDICTION: prediction_of(pipeline.scheduler),
        "zero_terminal_snr": bool(pipeline.scheduler.config.get("rescale_betas_zero_snr")),
        "prepend_endoftext": bool(pipeline.config.prepend_endoftext),
    }
    asked = {name: getattr(settings, name) for name in own}
    asked["zero_terminal_snr"] = asked["zero_terminal_snr"] or None  # False: as the pipeline
    for name, value in asked.items():
        if value not in (None, own[name]):
            raise ValueError(
                f"With `weights` {weights}, `{name}` must be that of {settings.model}, {own[name]}, got {value}: what "
                "is trained is used with that pipeline as it is. Leave it out, or train a pipeline of its own with "
                "`weights` attn2 or all."
            )


def prediction_of(scheduler: SchedulerMixin) -> str:
    """What a scheduler takes from a U-Net."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return "flow" if flow else str(scheduler.config[PREDICTION])
