"""One training of one arm, and everything that is measured with it; each step is kept, and done once."""

import dataclasses
import json
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import CLIPTextModel

from ..data.captions import PLACES, Description
from ..data.scene_splits import SPLITS, TRAINING, Scenes
from ..data.scenes import Scene, to_pixels
from ..evaluation.alignment import METRICS, Verdict, judge, shuffled
from ..evaluation.scenes import read_scene
from ..files import write_json
from ..training import Models, TrainingConfig, train
from .arms import Arm, Preset, build
from .drawing import Patched, draw

BATCH = 32
COLUMNS, SCALE, GAP = 8, 3, 2  # of a sheet of pictures
EVALUATIONS = {name: split for name, split in SPLITS.items() if "long" not in name} | {
    f"{name}, {place}": dataclasses.replace(SPLITS[name], place=place)
    for name in ("long", "very long")
    for place in PLACES
}
FIRST_EVALUATION_SEED = 1_000_000  # no training has this one or a later one; simple scenes come up under every seed


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training."""

    name: str
    arm: Arm
    seed: int
    models: Models
    seconds: float


def train_arm(
    name: str,
    arm: Arm,
    preset: Preset,
    seed: int,
    text_encoder: CLIPTextModel,
    folder: Path,
    progress: bool = True,
) -> Trained:
    """Train the U-Net, or go on, or load what is finished; `folder` is this training's own."""
    models = build(arm, preset, seed, text_encoder)
    config = TrainingConfig(
        folder / "training",
        preset.steps,
        batch_size=preset.batch_size,
        train_text_encoder=False,
        optimizer=preset.optimizer,
        learning_rate=preset.learning_rate,
        ema_decay=preset.ema_decay,
        mixed_precision=preset.mixed_precision,
        caption_dropout=0.1 if arm.reads_text else 1.0,
        checkpointing_steps=min(500, preset.steps),
        checkpoints_to_keep=1,
        seed=seed,
    )
    data = Patched(Scenes(preset.resolution, TRAINING, seed=seed), preset.patch)
    return Trained(name, arm, seed, models, train(config, models, data, progress=progress).seconds)


def measure(trained: Trained, preset: Preset, folder: Path, progress: bool = True) -> list[dict[str, object]]:
    """One row per evaluation; those that `folder/rows` holds already are read."""
    rows = []
    for evaluation in tqdm(EVALUATIONS, desc=f"{trained.name}, seed {trained.seed}", disable=not progress):
        path = row_path(folder, evaluation)
        if not path.exists():
            write_json(path, measure_split(trained, preset, evaluation, folder))
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    return rows


def measure_split(trained: Trained, preset: Preset, evaluation: str, folder: Path) -> dict[str, object]:
    """Draw pictures for captions of one evaluation, read them, hold them to their captions and to shuffled ones."""
    count = number_of_pictures(preset, evaluation)
    scenes = scenes_of(preset, evaluation)
    descriptions = [scenes.description(i) for i in range(count)]
    captions = [x.text for x in descriptions]
    start = time.perf_counter()
    pictures = torch.cat(
        [
            draw(trained.models, captions[i : i + BATCH], preset, i, trained.arm.reads_text)
            for i in range(0, count, BATCH)
        ]
    )
    seconds = time.perf_counter() - start
    seen = [read_scene(picture, scenes.grid) for picture in pictures]
    save_sheet(pictures[:BATCH], folder / "pictures" / f"{file_name(evaluation)}.png")
    return {
        "kind": "alignment",
        "arm": trained.name,
        "seed": trained.seed,
        "evaluation": evaluation,
        "training_seconds": round(trained.seconds, 1),
        "drawing_seconds": round(seconds, 1),
        **as_columns(descriptions, seen),
    }


def scenes_of(preset: Preset, evaluation: str) -> Scenes:
    """Each evaluation has scenes of its own, the same for all arms and trainings."""
    seed = FIRST_EVALUATION_SEED + list(EVALUATIONS).index(evaluation)
    return Scenes(preset.resolution, EVALUATIONS[evaluation], seed=seed)


def row_path(folder: Path, evaluation: str) -> Path:
    return folder / "rows" / f"{file_name(evaluation)}.json"


def file_name(evaluation: str) -> str:
    return evaluation.replace(", ", "-").replace(" ", "-")


def as_columns(descriptions: list[Description], seen: list[Scene]) -> dict[str, object]:
    """What is right in each picture, and under a shuffled caption, as lists of equal length."""
    verdicts = [judge(description, scene) for description, scene in zip(descriptions, seen, strict=True)]
    others = shuffled(len(seen))
    wrong = [judge(descriptions[j], scene) for j, scene in zip(others, seen, strict=True)]
    return {
        "language": [x.language for x in descriptions],
        "length": [x.length for x in descriptions],
        "objects": [len(x.mentions) for x in descriptions],
        **{name: [rounded(verdict, name) for verdict in verdicts] for name in METRICS},
        "bound_by_row": [[[row, int(right)] for row, right in verdict.bound_by_row] for verdict in verdicts],
        "shuffled": {name: [rounded(verdict, name) for verdict in wrong] for name in ("binding", "everything")},
    }


def rounded(verdict: Verdict, name: str) -> float | None:
    value = getattr(verdict, name)
    return None if value is None else round(value, 3)


def number_of_pictures(preset: Preset, evaluation: str) -> int:
    if evaluation == "same":
        return preset.pictures_same
    return preset.pictures // (len(PLACES) if "long" in evaluation else 1)


def save_sheet(pictures: torch.Tensor, path: Path) -> None:
    """Pictures `[N, 3, size, size]` in [-1, 1], in rows of `COLUMNS`."""
    pixels = to_pixels(pictures)
    pitch = pictures.shape[-1] * SCALE + GAP
    sheet = Image.new("RGB", (COLUMNS * pitch, -(-len(pixels) // COLUMNS) * pitch), "white")
    for i, picture in enumerate(pixels):
        enlarged = Image.fromarray(picture).resize((pitch - GAP,) * 2, Image.Resampling.NEAREST)
        sheet.paste(enlarged, (i % COLUMNS * pitch, i // COLUMNS * pitch))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def cut_sheet(path: Path, size: int, numbers: list[int]) -> list[Image.Image]:
    """Some pictures of a sheet that [`save_sheet`] wrote."""
    pitch = size * SCALE + GAP
    with Image.open(path) as sheet:
        corners = [(i % COLUMNS * pitch, i // COLUMNS * pitch) for i in numbers]
        return [sheet.crop((x, y, x + pitch - GAP, y + pitch - GAP)) for x, y in corners]


def measure_controls(preset: Preset) -> list[dict[str, object]]:
    """What chance gives, real pictures of other captions, and what the judge gives real pictures of the right ones."""
    rows = []
    for evaluation in EVALUATIONS:
        count = number_of_pictures(preset, evaluation)
        scenes = scenes_of(preset, evaluation)
        descriptions = [scenes.description(i) for i in range(count)]
        for name, first in (("real renders", 0), ("chance", count)):
            seen = [read_scene(scenes.image(first + i), scenes.grid) for i in range(count)]
            about = {"kind": "alignment", "arm": name, "seed": 0, "evaluation": evaluation}
            rows.append(about | as_columns(descriptions, seen))
    return rows
