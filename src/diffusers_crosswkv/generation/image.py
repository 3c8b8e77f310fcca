"""One image: the same call alone, in a run over many, on a page; with its own seed, stoppable between steps."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..models import PromptState
from .config import ImageConfig

OPTIONAL = ("negative_prompt", "num_inference_steps", "guidance_scale", "guidance_rescale", "height", "width")


class StoppedError(Exception):
    """Raise it in `on_step` to stop an image between two steps."""


@dataclass(frozen=True)
class MadeImage:
    """An image and its settings, the pipeline's defaults filled in; `flagged`: a safety checker blackened it."""

    image: Image.Image
    config: ImageConfig
    flagged: bool = False


def make_image(
    pipeline: DiffusionPipeline,
    config: ImageConfig,
    prompt_state: PromptState | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> MadeImage:
    """Make one image; the same settings give the same pixels, whatever was made before.

    Images are not batched: in a batch, rounding differs from that of an image alone.

    Args:
        pipeline: what [`load_pipeline`] returned.
        config: the settings; of its prompt state only the name is used.
        prompt_state: one state, which the prompt continues.
        on_step: called as `on_step(done, total)` after every step; may raise [`StoppedError`], which is passed on.

    Raises:
        ValueError: a setting does not fit the pipeline.
    """
    arguments = call_arguments(pipeline, config)
    parameters = inspect.signature(pipeline.__call__).parameters
    if prompt_state is not None:
        check_takes(pipeline, "prompt_state")
        arguments["prompt_state"] = prompt_state
    if on_step is not None and "callback_on_step_end" in parameters:
        arguments["callback_on_step_end"] = step_callback(on_step)
    try:
        with torch.random.fork_rng(devices=[]):  # a few schedulers draw from torch's own generator
            torch.manual_seed(config.seed)
            output = pipeline(**arguments, generator=torch.Generator().manual_seed(config.seed))
    except StoppedError:
        pipeline.maybe_free_model_hooks()
        raise
    image = output.images[0]
    defaults = {name: parameters[name].default for name in OPTIONAL if name in parameters}
    filled = {name: arguments.get(name, default) for name, default in defaults.items()}
    filled |= {"height": image.height, "width": image.width}
    return MadeImage(image, dataclasses.replace(config, **filled), blackened(output))


def call_arguments(pipeline: DiffusionPipeline, config: ImageConfig) -> dict[str, Any]:
    """What `config` asks of the pipeline's call.

    Raises:
        ValueError: the call has no such argument.
    """
    arguments: dict[str, Any] = {"prompt": config.prompt}
    for name in OPTIONAL:
        value = getattr(config, name)
        if value is not None:
            check_takes(pipeline, name)
            arguments[name] = value
    return arguments


def check_takes(pipeline: DiffusionPipeline, argument: str) -> None:
    """Refuse an argument that the pipeline's call does not have.

    Raises:
        ValueError: so.
    """
    if argument not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"{type(pipeline).__name__} takes no `{argument}`; leave it out.")


def step_callback(on_step: Callable[[int, int], None]) -> Callable[..., dict]:
    """`on_step(done, total)` as a `callback_on_step_end` of Diffusers."""

    def callback(pipeline: DiffusionPipeline, step: int, timestep: Any, tensors: dict) -> dict:
        on_step(step + 1, len(pipeline.scheduler.timesteps))
        return tensors

    return callback


def blackened(output: Any) -> bool:
    """Whether a safety checker replaced the image by a black one."""
    return any(getattr(output, "nsfw_content_detected", None) or ())
