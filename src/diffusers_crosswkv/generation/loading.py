"""A text-to-image pipeline of Diffusers, ours or another, from a folder or the Hub, ready on its device."""

import dataclasses
import difflib
import inspect
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from ..environment import best_device
from .config import ModelConfig

SCHEDULERS = {
    name.removesuffix("Scheduler").lower(): name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith("Flax")
}


def load_pipeline(config: ModelConfig) -> tuple[DiffusionPipeline, ModelConfig]:
    """Load a pipeline; also returns `config` with what was left open filled in: commit, dtype, device, scheduler.

    Only safetensors weights are read, and no code of a repository is run.

    Raises:
        OSError: there is no such model, or the Hub cannot be reached.
        ValueError: the pipeline makes no images from text, or does not take the scheduler or a LoRA.
    """
    config.check()
    scheduler = scheduler_class(config.scheduler)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    folder = Path(config.model)
    if not folder.is_dir():
        folder = download(config)
        config = dataclasses.replace(config, revision=folder.name)  # the commit
    pipeline = DiffusionPipeline.from_pretrained(folder, variant=config.variant, dtype=dtype, use_safetensors=True)
    check_makes_images_from_text(pipeline)
    if scheduler is not None:
        replace_scheduler(pipeline, scheduler)
        config = dataclasses.replace(config, scheduler=scheduler.__name__)
    load_loras(pipeline, config)
    pipeline.set_progress_bar_config(disable=True)
    config = dataclasses.replace(config, dtype=str(dtype).removeprefix("torch."), device=str(device))
    return pipeline.to(device), config


def download(config: ModelConfig) -> Path:
    """The snapshot's folder in the Hub's cache, its name is the commit.

    Raises:
        OSError: the repository, the revision or safetensors weights are missing, or the Hub cannot be reached.
    """
    try:
        return Path(
            DiffusionPipeline.download(
                config.model, revision=config.revision, variant=config.variant, use_safetensors=True
            )
        )
    except OSError as error:
        cause = error.__cause__ or error
        if isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError | GatedRepoError):
            where = config.model if config.revision is None else f"{config.model} at revision {config.revision}"
            raise OSError(
                f"The Hub has no {where} that you may read; check its name, or log in by `hf auth login`."
            ) from error
        if cause is error:  # the Hub was reached
            raise
        raise OSError(
            f"{config.model} is neither a folder nor in the Hub's cache, and the Hub cannot be reached ({cause}). "
            "Give a folder, or download the model while there is a connection: `hf download` or one run."
        ) from error


def scheduler_class(name: str | None) -> type[SchedulerMixin] | None:
    """The class that `name` means: `EulerDiscreteScheduler`, `EulerDiscrete`, `euler-discrete`.

    Raises:
        ValueError: Diffusers has none of that name.
    """
    if name is None:
        return None
    plain = name.replace("-", "").replace("_", "").lower().removesuffix("scheduler")
    if plain not in SCHEDULERS:
        near = [SCHEDULERS[other] for other in difflib.get_close_matches(plain, SCHEDULERS, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "Diffusers' documentation lists them."
        raise ValueError(f"Diffusers has no scheduler {name!r}; {hint}")
    return getattr(diffusers, SCHEDULERS[plain])


def replace_scheduler(pipeline: DiffusionPipeline, scheduler: type[SchedulerMixin]) -> None:
    """Give `pipeline` a scheduler with the settings of its own.

    Raises:
        ValueError: the two do not go together, or the scheduler needs a library that is not installed.
    """
    fitting = {cls.__name__ for cls in getattr(pipeline.scheduler, "compatibles", [])} | {
        type(pipeline.scheduler).__name__
    }
    if scheduler.__name__ not in fitting:
        raise ValueError(
            f"{scheduler.__name__} does not go with this pipeline; these do: {', '.join(sorted(fitting))}."
        )
    try:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    except ImportError as error:
        raise ValueError(str(error).strip()) from error


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: torch does not know it, or it is not here.
    """
    here = best_device()
    if name == "auto":
        return here
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device of torch or 'auto', got {name!r}.") from error
    if device.type != "cpu" and device.type != here.type:
        raise ValueError(f"There is no device {name} here; use 'auto', which takes {here}.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; `auto` is float32 on a CPU and bfloat16, which cannot overflow, elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


def check_makes_images_from_text(pipeline: DiffusionPipeline) -> None:
    """Refuse pipelines that need something else than text, or make something else than images.

    Raises:
        ValueError: so.
    """
    name, parameters = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
    if "image" in parameters or "prompt" not in parameters or "num_frames" in parameters:
        raise ValueError(f"{name} makes no images from text alone; give a text-to-image pipeline.")


def load_loras(pipeline: DiffusionPipeline, config: ModelConfig) -> None:
    """Load the LoRAs and set their strengths.

    Raises:
        ValueError: the pipeline takes no LoRA, or a file does not fit it.
    """
    if not config.loras:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} takes no LoRA.")
    names = [f"lora_{i}" for i in range(len(config.loras))]
    for name, lora in zip(names, config.loras, strict=True):
        path = Path(lora)
        source = {"weight_name": path.name} if path.is_file() else {}
        try:
            pipeline.load_lora_weights(
                str(path.parent if source else lora), adapter_name=name, use_safetensors=True, **source
            )
        except (RuntimeError, KeyError, ImportError) as error:
            raise ValueError(f"The LoRA {lora} does not fit {type(pipeline).__name__}: {error}") from error
    scales = config.lora_scales or (1.0,) * len(names)
    pipeline.set_adapters(names, list(scales))
