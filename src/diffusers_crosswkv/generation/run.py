"""A run: every prompt with every seed, an image file and its record each, and a contact sheet."""

import dataclasses
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ..files import write_json, write_whole
from ..models import PromptState
from .config import MAX_SEED, ImageConfig, ModelConfig, RunConfig
from .contact_sheet import contact_sheet
from .image import MadeImage, check_takes, make_image
from .loading import load_pipeline
from .prompt_length import prompt_length
from .record import ImageRecord, file_hashes, pixels_sha256, surroundings

SHEET = "contact-sheet.png"
BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}]"


@dataclass
class RunReport:
    """What a run wrote."""

    images: list[Path] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    sheet: Path | None = None
    prompt_state: Path | None = None
    warnings: list[str] = field(default_factory=list)


def generate(run: RunConfig) -> RunReport:
    """Make all images of a run, with a progress bar; what is finished is on the disk at once, each file whole.

    Raises:
        FileExistsError: a file of another run would be overwritten.
        OSError, ValueError: see [`check_run`] and [`load_pipeline`]; nothing was written.
    """
    check_run(run)
    states = None if run.image.prompt_state is None else PromptState.load(run.image.prompt_state)
    images = planned_images(run, states)
    check_outputs(run, [path for path, _ in images])
    hashes = file_hashes(run.model, run.image)
    pipeline, model = load_pipeline(run.model)
    if states is not None or run.save_prompt_state is not None:
        check_takes(pipeline, "prompt_state")
    report = RunReport()
    if run.save_prompt_state is not None:
        rows = [config for _, config in images[:: run.num_images_per_prompt]]
        save_prompt_states(pipeline, run.save_prompt_state, rows, states)
        report.prompt_state = run.save_prompt_state
    pictures: list[Image.Image] = []
    with tqdm(total=len(images), unit="image", bar_format=BAR) as bar:
        for path, config in images:
            start = time.perf_counter()
            made = make_image(pipeline, config, state_of(config, states), progress_in(bar, len(pictures)))
            bar.update(len(pictures) + 1 - bar.n)
            record = record_of(pipeline, model, made, hashes, time.perf_counter() - start)
            write_image(path, made.image, record)
            pictures.append(made.image)
            report.images.append(path)
            report.records.append(record)
            report.warnings += warnings_about(path, made, pipeline)
    if wants_grid(run, len(images)):
        report.sheet = run.output_dir / SHEET
        write_sheet(report.sheet, pictures, [config for _, config in images], run.num_images_per_prompt)
    return report


def check_run(run: RunConfig) -> None:
    """Refuse a run that cannot succeed, before anything is loaded.

    Raises:
        FileNotFoundError, ValueError: an argument does not fit; the message says what would.
    """
    run.model.check()
    if run.num_images_per_prompt < 1:
        raise ValueError(f"`num_images_per_prompt` must be at least 1, got {run.num_images_per_prompt}.")
    for prompt in run.prompts or (None,):
        dataclasses.replace(run.image, prompt=prompt).check()
    last = run.image.seed + run.num_images_per_prompt - 1
    if last > MAX_SEED:
        raise ValueError(f"Seeds must be 0 to {MAX_SEED}, but the last image would have {last}; start lower.")


def planned_images(run: RunConfig, states: PromptState | None) -> list[tuple[Path, ImageConfig]]:
    """Path and settings of every image, in order.

    Raises:
        ValueError: the prompts and the prompt states of the file do not go together.
    """
    indices = state_indices(run, states)
    prompts = run.prompts or (None,) * len(indices)
    seeds = range(run.image.seed, run.image.seed + run.num_images_per_prompt)
    return [
        (
            run.output_dir / f"{row:04d}-seed{seed}.png",
            dataclasses.replace(run.image, prompt=prompt, prompt_state_index=index, seed=seed),
        )
        for row, (prompt, index) in enumerate(zip(prompts, indices, strict=True))
        for seed in seeds
    ]


def state_indices(run: RunConfig, states: PromptState | None) -> Sequence[int | None]:
    """Per row of images, which prompt state it starts from."""
    rows, chosen = len(run.prompts), run.image.prompt_state_index
    if states is None:
        return [None] * rows
    if chosen is not None:
        if not 0 <= chosen < len(states):
            raise ValueError(
                f"`prompt_state_index` must be 0 to {len(states) - 1}, the file's last state, got {chosen}."
            )
        return [chosen] * max(1, rows)
    if rows in (0, len(states)):
        return range(len(states))
    if len(states) > 1:
        raise ValueError(
            f"Prompts continue one prompt state or one each, got {rows} prompts and {len(states)} states; "
            "choose one by `prompt_state_index`."
        )
    return [0] * rows


def check_outputs(run: RunConfig, images: list[Path]) -> None:
    """Refuse to overwrite, above all what the run reads, and to start where nothing can be written.

    Raises:
        FileExistsError: a file is there, `output_dir` is a file, or the prompt state would be saved over the one read.
        PermissionError: the folder cannot be written to.
    """
    read, saved = run.image.prompt_state, run.save_prompt_state
    if read is not None and saved is not None and saved.resolve() == Path(read).resolve():
        raise FileExistsError(
            f"`save_prompt_state` must not be the file that `prompt_state` is read from, got {saved} for both; choose "
            "another file."
        )
    outputs = [*images, *(path.with_suffix(".json") for path in images)]
    outputs += [run.output_dir / SHEET] * wants_grid(run, len(images))
    outputs += [saved] if saved is not None else []
    there = [path for path in outputs if path.exists()]
    if there and not run.overwrite:
        raise FileExistsError(
            f"{there[0]} is there already ({len(there)} of {len(outputs)} files); "
            "choose another output folder, or overwrite them by --overwrite."
        )
    for folder in {path.parent for path in outputs}:
        nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not nearest.is_dir():
            raise FileExistsError(f"{folder} must be a folder, but {nearest} is a file.")
        if not os.access(nearest, os.W_OK):
            raise PermissionError(f"{nearest} must be a folder that you may write to.")


def wants_grid(run: RunConfig, num_images: int) -> bool:
    return num_images > 1 if run.grid is None else run.grid


def state_of(config: ImageConfig, states: PromptState | None) -> PromptState | None:
    return None if states is None or config.prompt_state_index is None else states[config.prompt_state_index]


def save_prompt_states(
    pipeline: DiffusionPipeline, path: Path, configs: list[ImageConfig], states: PromptState | None
) -> None:
    """Write the states of `configs`; each prompt is encoded alone, so that its state is that of its images."""
    encoded = [pipeline.encode_prompt_state(config.prompt, state_of(config, states)) for config in configs]
    path.parent.mkdir(parents=True, exist_ok=True)
    PromptState.cat(encoded).save(path)


def progress_in(bar: tqdm, done_images: int) -> Callable[[int, int], None]:
    """Moves `bar`, which counts images, by parts of an image."""
    return lambda done, total: bar.update(done_images + done / total - bar.n)


def record_of(
    pipeline: DiffusionPipeline, model: ModelConfig, made: MadeImage, hashes: dict[str, str], seconds: float
) -> ImageRecord:
    length = None if made.config.prompt is None else prompt_length(pipeline, made.config.prompt)
    return ImageRecord(
        model=model,
        image=made.config,
        pixels_sha256=pixels_sha256(made.image),
        pipeline={"class": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__},
        file_sha256=hashes,
        text=None if length is None else dataclasses.asdict(length),
        environment=surroundings(pipeline),
        seconds=round(seconds, 2),
        flagged=made.flagged,
    )


def write_image(path: Path, image: Image.Image, record: ImageRecord) -> None:
    """The record first: no image is without one."""
    write_json(path.with_suffix(".json"), record.to_json(), indent=2)
    write_whole(path, png(image))


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def warnings_about(path: Path, made: MadeImage, pipeline: DiffusionPipeline) -> Iterator[str]:
    if made.flagged:
        yield f"{path.name} is black: the pipeline's safety checker refused it."
    length = None if made.config.prompt is None else prompt_length(pipeline, made.config.prompt)
    if length is not None and length.lost:
        yield f"{path.name} does not show all of its prompt: {length}."


def write_sheet(path: Path, pictures: list[Image.Image], configs: list[ImageConfig], columns: int) -> None:
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    labels = [sheet_label(config) for config in configs[::columns]]
    write_whole(path, png(contact_sheet(rows, labels, [config.seed for config in configs[:columns]])))


def sheet_label(config: ImageConfig) -> str:
    state = None if config.prompt_state is None else f"{Path(config.prompt_state).name} [{config.prompt_state_index}]"
    return " + ".join(part for part in (state, config.prompt) if part is not None)
