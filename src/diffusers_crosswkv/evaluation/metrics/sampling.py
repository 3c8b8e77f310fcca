"""Samples of a pipeline, as files: by any number of processes, and an interrupted run goes on."""

import inspect
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ...files import write_json, write_whole
from .protocols import SampleFacts, of_samples, refuse

SETTINGS = "samples.json"
OPTIONAL = ("num_inference_steps", "guidance_scale", "height", "width")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """Which images are made. None means the pipeline's own default.

    Args:
        prompts: image i has prompt i modulo their number.
        num_samples: >= 1.
        seed: image i has a generator of its own with `seed` + i.
        batch_size: images per call. Pixels depend on it a little, for sums are rounded in another order; which process
            makes an image, and what it made before, changes nothing.
    """

    prompts: tuple[str, ...]
    num_samples: int
    seed: int = 0
    batch_size: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None

    def check(self) -> None:
        """
        Raises:
            ValueError: an argument does not fit.
        """
        if not self.prompts:
            raise ValueError("Samples must have prompts (--prompts_file), got none.")
        for name in ("num_samples", "batch_size", "num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0 <= self.seed <= MAX_SEED - self.num_samples + 1:
            raise ValueError(f"Seeds must be 0 to {MAX_SEED}, the last image's too, got {self.seed} for the first.")

    def prompt(self, index: int) -> str:
        return self.prompts[index % len(self.prompts)]


def make_samples(
    config: SamplingConfig,
    folder: Path,
    model: dict[str, Any],
    load: Callable[[], DiffusionPipeline],
    state: PartialState,
    protocol: str | None = None,
) -> SampleFacts:
    """Make the images that are missing in `folder`, `<index>.png`, each written whole; returns when all are there.

    Args:
        model: what names the pipeline, for [`SETTINGS`].
        load: called only if there is something to make.
        protocol: refuse what it does not measure, before the second batch at the latest.

    Raises:
        ValueError: the folder holds images of other settings, the pipeline takes no such argument, or a safety checker
            has blackened an image.
    """
    config.check()
    asked = json.loads(json.dumps({"model": model, **asdict(config)}))  # as it is read back
    settings = folder / SETTINGS
    if settings.is_file():
        check_same(json.loads(settings.read_text(encoding="utf-8"))["asked"], asked, folder)
    state.wait_for_everyone()
    starts = range(0, config.num_samples, config.batch_size)[state.process_index :: state.num_processes]
    batches = [range(start, min(start + config.batch_size, config.num_samples)) for start in starts]
    missing = [batch for batch in batches if not all(image_path(folder, i).is_file() for i in batch)]
    if missing or not settings.is_file():
        pipeline = load()
        arguments, facts = call_arguments(pipeline, config), facts_of(pipeline, config, model)
        if protocol is not None:
            refuse(protocol, of_samples(protocol, config.num_samples, facts))
        if state.is_main_process:
            write_json(settings, {"asked": asked, "facts": asdict(facts)}, indent=2)
        title = f"samples (process 1 of {state.num_processes})" if state.num_processes > 1 else "samples"
        with tqdm(total=sum(map(len, missing)), desc=title, unit="image", disable=not state.is_main_process) as bar:
            for batch in missing:
                size = make_batch(pipeline, config, batch, arguments, folder)
                if protocol is not None:
                    refuse(protocol, of_samples(protocol, config.num_samples, facts, size))
                bar.update(len(batch))
    state.wait_for_everyone()
    return read_facts(folder) or SampleFacts()


def make_batch(
    pipeline: DiffusionPipeline, config: SamplingConfig, batch: range, arguments: dict[str, Any], folder: Path
) -> tuple[int, int]:
    """Height and width of the images."""
    with torch.random.fork_rng(devices=[]):  # a few schedulers draw from torch's own generator
        torch.manual_seed(config.seed + batch[0])
        output = pipeline(
            prompt=[config.prompt(i) for i in batch],
            generator=[torch.Generator().manual_seed(config.seed + i) for i in batch],
            **arguments,
        )
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        raise ValueError(
            f"The pipeline's safety checker has blackened an image of {batch[0]} to {batch[-1]}, and black images "
            "would be measured; save the pipeline with safety_checker=None, or choose other prompts."
        )
    for index, image in zip(batch, output.images, strict=True):
        write_whole(image_path(folder, index), png(image))
    return image.height, image.width


def call_arguments(pipeline: DiffusionPipeline, config: SamplingConfig) -> dict[str, Any]:
    known = inspect.signature(pipeline.__call__).parameters
    asked = {name: getattr(config, name) for name in OPTIONAL if getattr(config, name) is not None}
    for name in asked:
        if name not in known:
            raise ValueError(f"{type(pipeline).__name__} takes no `{name}`; leave it out.")
    return asked


def facts_of(pipeline: DiffusionPipeline, config: SamplingConfig, model: dict[str, Any]) -> SampleFacts:
    """With the pipeline's defaults filled in."""
    known = inspect.signature(pipeline.__call__).parameters
    steps, guidance = (
        getattr(config, name) if getattr(config, name) is not None or name not in known else known[name].default
        for name in ("num_inference_steps", "guidance_scale")
    )
    name = " ".join(f"{value}" for value in (model.get("model"), model.get("revision")) if value)
    return SampleFacts(type(pipeline.scheduler).__name__, steps, guidance, name, config.seed)


def read_facts(folder: Path) -> SampleFacts | None:
    """Of samples that [`make_samples`] made; None of others."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    return SampleFacts(**json.loads(path.read_text(encoding="utf-8"))["facts"])


def check_same(made: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    other = [name for name in made | asked if made.get(name) != asked.get(name)]
    if other:
        raise ValueError(
            f"{folder} holds samples of other settings ({', '.join(other)}); choose another --output_dir or delete it."
        )


def image_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
