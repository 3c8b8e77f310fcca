"""All that the robustness benchmark does, arm by arm; every part is kept and done once."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from ..alignment.runs import row_path
from ..alignment.suite import claim
from ..environment import environment
from ..evaluation.kernel_rows import commit, processor
from ..files import write_json
from ..finetuning.records import read_metrics
from ..finetuning.state_log import STATES_FILE
from ..training import Models
from .arms import PRESETS, SOFTMAX, Preset, train_arm
from .measuring import Row, measure_lengths, measure_prompts, measure_sampling


def run_arm(arm: str, preset_name: str, folder: Path, progress: bool = True) -> None:
    """Train one arm and measure it; what `folder` holds is not done again.

    Raises:
        ValueError: `folder` holds an arm of another preset.
        FileExistsError, FloatingPointError, TrainingInterrupted: see [`train`].
    """
    preset, own = PRESETS[preset_name], folder / arm
    claim(own, {"arm": arm, "preset": dataclasses.asdict(preset)})
    parts = dict(measurements(arm, preset))
    missing = [name for name in parts if not row_path(own, name).exists()]
    if not missing:
        return
    models = train_arm(arm, preset, own, progress)
    about: dict[str, object] = {"arm": arm, "parameters": models.num_parameters(), **settings_of(preset)}
    about.update(environment(models.unet.device), processor=processor(), commit=commit())
    if arm != SOFTMAX:
        looks = read_metrics(own / STATES_FILE)
        write_json(row_path(own, "training"), {"kind": "training", **about, "looks": looks})
    for name in tqdm(missing, desc=f"measuring {arm}", disable=not progress):
        write_json(row_path(own, name), {**parts[name](models), **about})


def settings_of(preset: Preset) -> dict[str, object]:
    settings = dataclasses.asdict(preset)
    return {name: settings[name] for name in ("train_steps", "sampling_steps", "guidance_scale", "seed")}


def measurements(arm: str, preset: Preset) -> Iterator[tuple[str, Callable[[Models], Row]]]:
    """Names and what to call with the trained models."""
    if arm != SOFTMAX:
        yield "sampling", partial(measure_sampling, preset=preset)
    if arm not in (SOFTMAX, "paper"):
        yield "lengths", partial(measure_lengths, preset=preset)
    for number, name in enumerate(preset.prompt_sets):
        for with_prefix in (True, False):
            which = "with" if with_prefix else "without"
            call = partial(measure_prompts, preset=preset, name=name, with_prefix=with_prefix)
            yield f"prompts-{number}-{which}-endoftext", call


def rows_of(folder: Path, arms: Sequence[str]) -> list[Row]:
    """What is there of all arms.

    Raises:
        FileNotFoundError: nothing is.
    """
    paths = [path for arm in arms for path in sorted((folder / arm / "rows").glob("*.json"))]
    if not paths:
        raise FileNotFoundError(f"There are no rows in {folder}; run without --report-only.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
