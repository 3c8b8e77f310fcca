"""What a training run is told, checked before any work starts."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..files import holds_something, write_json
from .optimizers import OPTIMIZERS

RUN_FILE = "training.json"


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a run; `output_dir` aside, two runs with equal settings give equal weights.

    Args:
        output_dir: receives `training.json` and `checkpoints/`; must be empty, new, or of this same run.
        max_train_steps: optimizer steps, >= 1.
        batch_size: images per step, over all processes; their number must divide it.
        optimizer: `adamw`, or `muon`, which is AdamW for all but linear layers. In the few runs of our own
            (`benchmarks/alignment`) a small model from scratch needed less than half the steps with it.
        learning_rate: peak rate, > 0; cosine decay to zero.
        lr_warmup_steps: linear warm-up, >= 0.
        weight_decay: decoupled, >= 0; on matrices, embeddings and convolutions only.
        max_grad_norm: gradients are clipped to this norm, > 0.
        ema_decay: of the averaged weights that the run returns, in [0, 1).
        caption_dropout: share of captions replaced by "", in [0, 1]: what classifier-free guidance needs.
        checkpointing_steps: steps between checkpoints, >= 1.
        checkpoints_to_keep: older ones are deleted, >= 1.
        mixed_precision: `no` or `bf16`.
        seed: of everything random.

    Raises:
        ValueError: a value is out of its range.
    """

    output_dir: str | os.PathLike
    max_train_steps: int
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    lr_warmup_steps: int = 100
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99
    caption_dropout: float = 0.1
    checkpointing_steps: int = 200
    checkpoints_to_keep: int = 2
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self):
        for name in ("max_train_steps", "batch_size", "checkpointing_steps", "checkpoints_to_keep"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr_warmup_steps", "weight_decay", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "positive and finite")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)")
        self._require("caption_dropout", 0 <= self.caption_dropout <= 1, "in [0, 1]")
        self._require("optimizer", self.optimizer in OPTIMIZERS, "one of " + ", ".join(OPTIMIZERS))
        self._require("mixed_precision", self.mixed_precision in ("no", "bf16"), "'no' or 'bf16'")

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            raise ValueError(f"`{name}` must be {requirement}, got {getattr(self, name)!r}.")

    @property
    def checkpoints_dir(self) -> Path:
        return Path(self.output_dir, "checkpoints")

    def settings(self) -> dict[str, object]:
        """All values but the place, as they are stored in `training.json`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "output_dir"}


def claim_output_dir(config: TrainingConfig) -> None:
    """Make the output folder this run's, or find that it is.

    Raises:
        FileExistsError: it is a file, or holds something else.
        ValueError: it holds a run with other settings.
    """
    folder, settings = Path(config.output_dir), config.settings()
    run_file = folder / RUN_FILE
    if run_file.is_file():
        try:
            stored = json.loads(run_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{run_file} is damaged ({error}); restore it, or use another `output_dir`.") from error
        different = [name for name in settings if stored.get(name) != settings[name]]
        if different:
            was, now = ({name: values.get(name) for name in different} for values in (stored, settings))
            raise ValueError(
                f"{folder} holds a run with other settings, {was} instead of {now}; "
                "use the same settings to go on, or another `output_dir`."
            )
        return
    if holds_something(folder):
        raise FileExistsError(
            f"`output_dir` must be new, empty, or a run to go on with, but {folder} holds something else; "
            "choose another folder."
        )
    write_json(run_file, settings, indent=2)
