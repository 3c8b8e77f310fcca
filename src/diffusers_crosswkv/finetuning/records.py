"""What a run writes down while it runs: `metrics.jsonl`, and entries in trackers."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from ..files import write_whole
from ..training.callbacks import Callback, StepMetrics

if TYPE_CHECKING:
    from ..training.run import Run

METRICS_FILE = "metrics.jsonl"
LOGS_DIR = "logs"
PACKAGES = {"comet_ml": "comet-ml"}  # where pip knows them under another name


class MetricsFile:
    """Lines of JSON, one per entry, whole after any interruption; on the main process alone.

    Args:
        path: of the file; made if it is not there.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[str] | None = None

    def open(self, step: int) -> None:
        """Keep the whole lines up to `step`, which is where the run goes on; none of a run that starts again."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, **entry: Any) -> None:
        """Append one line; a process that is killed after this call does not lose it."""
        assert self._file is not None
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Every line has reached the disk after this."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of `metrics.jsonl`, without a line that an interruption has cut off; none if there is no file."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class Trackers:
    """Accelerate's trackers under one name each; on the main process alone.

    Args:
        names: as Accelerate knows them.
        run_name: of the run.
        folder: for those that write files.
    """

    def __init__(self, names: Iterable[str], run_name: str, folder: Path):
        check_trackers(names)
        self.names, self.run_name, self.folder = tuple(names), run_name, folder
        self._trackers: list[GeneralTracker] = []

    def open(self, settings: Mapping[str, Any], step: int) -> None:
        """Start them; what they hold of later steps than `step` is dropped where a tracker can do that."""
        plain = {name: x if isinstance(x, bool | int | float | str) else str(x) for name, x in settings.items()}
        for name in self.names:
            cls = LOGGER_TYPE_TO_CLASS[name]
            options: dict[str, Any] = {"logging_dir": self.folder} if cls.requires_logging_directory else {}
            options |= {"purge_step": step + 1} if name == "tensorboard" and step else {}
            tracker = cls(self.run_name, **options)
            tracker.start()
            if not step:
                tracker.store_init_configuration(plain)
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """A picture, in those that show pictures."""
        for tracker in self._trackers:
            if tracker.name == "tensorboard":
                pixels = np.asarray(image.convert("RGB"))[None]
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [image]}, step=step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker that Accelerate does not know or that is not installed.

    Raises:
        ValueError: it does not know the name.
        ModuleNotFoundError: its package is not there.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise ValueError(f"`report_to` must be of {known} or none, got {name!r}.")
        if name not in [str(tracker.value) for tracker in get_available_trackers()]:
            raise ModuleNotFoundError(
                f"`--report_to {name}` needs the package {PACKAGES.get(name, name)}, which is not installed; install "
                "it, or choose --report_to none: metrics.jsonl and loss.png are written in any case."
            )


class Records(Callback):
    """Writes every `log_every`-th step, and what validation finds, to `metrics.jsonl` and the trackers.

    Args:
        metrics, trackers: where to.
        settings: of the run, for the trackers.
        log_every: steps between two entries.
    """

    def __init__(self, metrics: MetricsFile, trackers: Trackers, settings: Mapping[str, Any], log_every: int = 1):
        self.metrics, self.trackers, self.settings, self.log_every = metrics, trackers, settings, log_every
        self.is_main = False
        self.started = 0.0
        self.seconds_before = 0.0

    def start(self, run: "Run") -> None:
        self.is_main = run.accelerator.is_main_process
        self.started = time.monotonic()
        if self.is_main:
            self.metrics.open(run.step)
            self.trackers.open(self.settings, run.step)
            steps = [line for line in read_metrics(self.metrics.path) if "loss" in line]
            self.seconds_before = steps[-1]["seconds"] if steps else 0.0

    def step(self, run: "Run", metrics: StepMetrics) -> None:
        if self.is_main and metrics.step % self.log_every == 0:
            values = dataclasses.asdict(metrics)
            step = values.pop("step")
            known = {name: value for name, value in values.items() if math.isfinite(value)}
            self.metrics.write(step=step, **{**dict.fromkeys(values), **known}, seconds=self.seconds())
            self.trackers.log(known, step)

    def validation(self, step: int, **values: float) -> None:
        """Enter what a validation found; on the main process alone."""
        self.metrics.write(step=step, **values, seconds=self.seconds())
        self.trackers.log(values, step)

    def validated(self, step: int) -> bool:
        """Whether a validation after `step` has been entered; on the main process alone."""
        return any(line["step"] == step and "validation_loss" in line for line in read_metrics(self.metrics.path))

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Show a picture in the trackers; on the main process alone."""
        self.trackers.log_image(name, image, step)

    def checkpoint(self, run: "Run", folder: Path) -> None:
        if self.is_main:
            self.metrics.sync()

    def end(self, run: "Run") -> None:
        self.close()

    def close(self) -> None:
        self.metrics.close()
        self.trackers.close()

    def seconds(self) -> float:
        """Since the run began, without the time between interruptions."""
        return round(self.seconds_before + time.monotonic() - self.started, 3)
