"""Samples of a pipeline, as files: by any number of processes, and an interrupted run goes on."""

import inspect
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ...data.image_folder import walk
from ...files import write_json, write_whole
from .image_sets import digest
from .protocols import SampleFacts
from .weights import sha256

SETTINGS = "samples.json"
OPTIONAL = ("num_inference_steps", "guidance_scale", "height", "width")
MAX_SEED = 2**32 - 1
PIPELINE_FILES = (".json", ".safetensors", ".txt", ".model")  # settings, weights, tokenizers

Check = Callable[[SampleFacts, tuple[int, int] | None], None]


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
    check: Check | None = None,
) -> SampleFacts:
    """Make the images that are missing in `folder`, `<index>.png`, each written whole; returns when all are there.

    More may be asked for later: those that are there stay, but for a last batch that was not full.

    Args:
        model: `name`, for people, and whatever tells the pipeline from others: see [`pipeline_identity`].
        load: called only if there is something to make.
        check: raises ValueError for samples not wanted: before the first, and with their size after the first batch.

    Raises:
        ValueError: the folder holds other images or those of other settings, the pipeline takes no such argument, or a
            safety checker has blackened an image.
    """
    config.check()
    asked = settings_of(config, model)
    check_folder(folder, asked)
    state.wait_for_everyone()
    missing = missing_batches(config, folder, state)
    if missing or not (folder / SETTINGS).is_file():
        pipeline = load()
        arguments, facts = call_arguments(pipeline, config), facts_of(pipeline, config, model)
        if check is not None:
            check(facts, None)
        if state.is_main_process:
            write_json(folder / SETTINGS, {"asked": asked, "facts": asdict(facts)}, indent=2)
    state.wait_for_everyone()  # no image without its settings, whenever the run is stopped
    for batch in progress(missing, state):
        size = make_batch(pipeline, config, batch, arguments, folder)
        if check is not None and batch is missing[0]:
            check(facts, size)
    state.wait_for_everyone()
    return read_facts(folder) or SampleFacts()


def missing_batches(config: SamplingConfig, folder: Path, state: PartialState) -> list[range]:
    """Those of this process of which an image is not there."""
    starts = range(0, config.num_samples, config.batch_size)[state.process_index :: state.num_processes]
    batches = [range(start, min(start + config.batch_size, config.num_samples)) for start in starts]
    return [batch for batch in batches if not all(image_path(folder, i).is_file() for i in batch)]


def progress(batches: list[range], state: PartialState) -> Iterator[range]:
    """The batches, behind a bar that counts images."""
    title = f"samples (process 1 of {state.num_processes})" if state.num_processes > 1 else "samples"
    hidden = not (batches and state.is_main_process)
    with tqdm(total=sum(map(len, batches)), desc=title, unit="image", disable=hidden) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def settings_of(config: SamplingConfig, model: dict[str, Any]) -> dict[str, Any]:
    """What all images of a folder have in common, as it is read back."""
    settings = {name: value for name, value in (model | asdict(config)).items() if name not in ("name", "num_samples")}
    return json.loads(json.dumps(settings))


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
    name = " ".join(str(model[key]) for key in ("name", "weights") if key in model)
    return SampleFacts(type(pipeline.scheduler).__name__, steps, guidance, name, config.seed)


def pipeline_identity(folder: Path) -> str:
    """A hash of what a pipeline's folder holds: settings, weights, tokenizers; not of its place."""
    paths = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix in PIPELINE_FILES]
    parts = [f"{path.relative_to(folder).as_posix()} {sha256(path)}" for path in sorted(paths) if path.is_file()]
    return f"sha256:{digest(parts)}"


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What [`make_samples`] wrote; None where there is nothing of the kind."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return {"asked": dict(settings["asked"]), "facts": SampleFacts(**settings["facts"])}
    except (OSError, ValueError, KeyError, TypeError):  # no file, or another program's
        return None


def read_facts(folder: Path) -> SampleFacts | None:
    """Of samples that [`make_samples`] made; None of others."""
    settings = read_settings(folder)
    return None if settings is None else settings["facts"]


def check_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse images that were not made so."""
    settings = read_settings(folder)
    if settings is None:
        there = next(walk(folder), SETTINGS if (folder / SETTINGS).exists() else None)
        if there is not None:
            raise ValueError(
                f"{folder} must be empty or hold samples of an earlier run, but {there} is there without the record "
                f"({SETTINGS}) that such a run keeps; choose another --output_dir, or measure images by --samples."
            )
        return
    made = settings["asked"]
    other = [
        "prompts" if name == "prompts" else f"{name}: {made.get(name)}, asked {asked.get(name)}"
        for name in made | asked
        if made.get(name) != asked.get(name)
    ]
    if other:
        raise ValueError(
            f"{folder} holds samples of other settings ({'; '.join(other)}); choose another --output_dir or delete it."
        )


def image_name(index: int) -> str:
    return f"{index:06d}.png"


def image_path(folder: Path, index: int) -> Path:
    return folder / image_name(index)


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
