"""All trainings of the Othello benchmark and what is measured with them; each is kept, and done once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files import write_json
from ..training.checkpoints import load_latest_checkpoint
from .measures import (
    Row,
    Sizes,
    about_run,
    chance_rows,
    legality_rows,
    majority_rows,
    match_rows,
    player_rows,
    probe_rows,
    training_rows,
)
from .training import Plan, Training

MIXERS = ("wkv7", "softmax")
DEFAULT_LESSONS = ("legal", "play")  # `next` needs many times the games for as much
CPU = torch.device("cpu")
START_FROM = {"play": "legal"}
MEASURES = {
    "legal": {"training": training_rows, "legality": legality_rows, "match": match_rows, "probe": probe_rows},
    "next": {"training": training_rows, "legality": legality_rows},
    "play": {"training": training_rows, "match": match_rows},
}
CONTROLS: dict[str, Callable[[Sizes], list[Row]]] = {
    "chance": chance_rows,
    "majority": majority_rows,
    "players": player_rows,
}


@dataclass(frozen=True)
class Preset:
    """One shape for all models; steps of each lesson, the same for all mixers."""

    width: int
    head_dim: int
    layers: int
    steps: dict[str, int]
    batch_size: int
    learning_rate: float
    sizes: Sizes

    def plan(self, mixer: str, lesson: str) -> Plan:
        shape = (self.width, self.head_dim, self.layers)
        how = (self.steps[lesson], self.batch_size, self.learning_rate)
        return Plan(mixer, lesson, *shape, *how, start_from=START_FROM.get(lesson))


PRESETS = {
    "smoke": Preset(16, 8, 1, {"legal": 2, "next": 2, "play": 2}, 8, 4e-3, Sizes(10, (8, 8), 6)),
    "small": Preset(128, 32, 2, {"legal": 800, "next": 800, "play": 200}, 64, 4e-3, Sizes(2000, (1500, 500), 1000)),
    "large": Preset(
        512, 64, 8, {"legal": 20_000, "next": 50_000, "play": 5000}, 256, 1e-3, Sizes(10_000, (6000, 2000), 1000)
    ),
}


def run_suite(
    preset: Preset,
    folder: Path,
    mixers: Sequence[str] = MIXERS,
    lessons: Sequence[str] = DEFAULT_LESSONS,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> None:
    """Train and measure what is not there yet: first all mixers on one lesson, then on the next.

    Raises:
        ValueError: `play` is asked for where no model has learned `legal`, or the folder holds other trainings.
        TrainingInterrupted: Ctrl-C or SIGTERM in a training; it is saved.
    """
    for name, measure in CONTROLS.items():
        keep_rows(folder, name, asdict(preset.sizes), partial(measure, preset.sizes))
    for lesson in lessons:
        for mixer in mixers:
            run_training(preset, folder, mixer, lesson, torch.device(device), progress)


def run_training(preset: Preset, folder: Path, mixer: str, lesson: str, device: torch.device, progress: bool) -> None:
    plan = preset.plan(mixer, lesson)
    start = finished_weights(folder, preset.plan(mixer, plan.start_from)) if plan.start_from else None
    training = Training(plan, folder_of(folder, plan), start, device)
    training.run(progress)
    settings = {"plan": asdict(plan), "sizes": asdict(preset.sizes)}
    for name, measure in tqdm(MEASURES[lesson].items(), desc=f"{mixer}, {lesson}, measured", disable=not progress):
        keep_rows(folder, f"{mixer}-{lesson}-{name}", settings, partial(measure, training, preset.sizes), device)


def finished_weights(folder: Path, plan: Plan) -> dict[str, torch.Tensor]:
    own = folder_of(folder, plan)
    checkpoint = load_latest_checkpoint(own)
    if checkpoint is None or checkpoint.step < plan.steps:
        raise ValueError(
            f"`play` goes on from a finished training of `{plan.lesson}`, but {own} has none; add that lesson."
        )
    return checkpoint.tensors["model"]


def folder_of(folder: Path, plan: Plan) -> Path:
    return folder / f"{plan.mixer}-{plan.lesson}"


def keep_rows(
    folder: Path, name: str, settings: Row, measure: Callable[[], list[Row]], device: torch.device = CPU
) -> None:
    """Measure, unless the folder has rows of that name which were measured with the same settings."""
    path = folder / "rows" / f"{name}.json"
    settings = json.loads(json.dumps(settings))
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] == settings:
        return
    about = about_run(device) | settings.get("plan", {})
    rows = [about | row for row in measure()]
    write_json(path, {"settings": settings, "rows": rows})


def collect_rows(folder: Path) -> list[Row]:
    """All rows of a folder, controls first."""
    paths = sorted((folder / "rows").glob("*.json"), key=lambda path: (path.stem not in CONTROLS, path.stem))
    return [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
