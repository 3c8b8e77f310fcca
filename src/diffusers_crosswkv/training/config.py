"""What a training run is told, checked before any work starts."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import holds_something, write_json
from .checkpoints import checkpoint_folders
from .optimizers import OPTIMIZERS

RUN_FILE = "training.json"
WEIGHTS = ("all", "attn2", "lora", "state")
LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)


COUNTS = (
    "max_train_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "lora_rank",
    "lr_num_cycles",
    "checkpointing_steps",
    "checkpoints_to_keep",
    "max_bad_steps",
)
MOST_WARM_UP, WARM_UP_SHARE = 100, 10
CHOICES = {
    "timestep_density": ("uniform", "logit_normal"),
    "weights": WEIGHTS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": LR_SCHEDULERS,
    "mixed_precision": ("no", "bf16", "fp16"),
}


# What a checkpoint holds does not depend on them: a run may go on with others if that is asked for.
RENEWABLE = (
    "max_train_steps",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "lr_num_cycles",
    "lr_power",
    "weight_decay",
    "max_grad_norm",
    "caption_dropout",
    "min_snr_gamma",
    "timestep_density",
    "noise_offset",
)


def free(default: Any) -> Any:
    """A setting that changes nothing of the result but rounding: it may be another one when a run goes on."""
    return field(default=default, metadata={"free": True})


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a run; but for rounding, two runs that differ in those marked (free) alone give equal weights.

    Args:
        output_dir: receives `training.json` and `checkpoints/`; must be empty, new, or of this same run (free).
        max_train_steps: optimizer steps, >= 1.
        batch_size: images per optimizer step, over all processes and all accumulated parts.
        gradient_accumulation_steps: parts in which each process computes its share of a batch, >= 1; less memory
            (free).
        weights: what is trained of the U-Net: `all`, `attn2` (cross-attention alone), `lora` (adapters on the
            projections of all attentions), or `state` (initial states alone: a style or a subject as a prompt state).
        train_text_encoder: train the text encoder too, with `weights="all"`.
        lora_rank: of the adapters, >= 1.
        optimizer: `adamw`; `adamw8bit` (bitsandbytes); `prodigy` (prodigyopt; give it `learning_rate` 1); or `muon`,
            which is AdamW for all but linear layers: in the few runs of our own (`benchmarks/alignment`) a small model
            from scratch needed less than half the steps with it.
        learning_rate: peak rate, > 0.
        lr_scheduler: one of `LR_SCHEDULERS`, as in Diffusers.
        lr_warmup_steps: linear warm-up, from 0 to less than the run; 100, or a tenth of a shorter run, if None.
        lr_num_cycles: of `cosine_with_restarts`, >= 1.
        lr_power: of `polynomial`, > 0.
        weight_decay: decoupled, >= 0; on matrices, embeddings and convolutions only, never on adapters and states.
        max_grad_norm: gradients are clipped to this norm, > 0.
        ema_decay: of the averaged weights that the run returns, in [0, 1); 0 keeps none.
        ema_on_cpu: keep the averaged weights in main memory (free).
        caption_dropout: share of captions replaced by "", in [0, 1]: what classifier-free guidance needs.
        min_snr_gamma: weight of the least noisy steps (Hang et al., 2023, arXiv:2303.09556), > 0; 5 there. None: off.
        timestep_density: how often a step of the way from noise to image is trained, `uniform` or, with flow matching,
            `logit_normal` (Esser et al., 2024, arXiv:2403.03206): the middle of the way more often.
        noise_offset: strength of noise that is constant over a channel, >= 0; for very dark and bright images.
        checkpointing_steps: steps between checkpoints, >= 1 (free).
        checkpoints_to_keep: older ones are deleted, >= 1 (free).
        mixed_precision: `no`, `bf16` or `fp16` (free).
        gradient_checkpointing: compute activations twice to keep fewer (free).
        compile: `torch.compile` the U-Net (free).
        max_bad_steps: so many steps in a row without a finite loss and gradient end the run, >= 1 (free).
        max_bad_images: share of images that may be broken or without a caption before the run ends, in [0, 1] (free).
        data_threads: threads that decode images ahead, >= 0 (free).
        seed: of everything random.
        resume_with_new_settings: let a run in `output_dir` go on from its newest checkpoint with other settings of
            [`RENEWABLE`]: a lower `learning_rate` after a divergence, more `max_train_steps` (free).

    Raises:
        ValueError: a value is out of its range.
    """

    output_dir: str | os.PathLike = field(metadata={"free": True})
    max_train_steps: int
    batch_size: int = 32
    gradient_accumulation_steps: int = free(1)
    weights: str = "all"
    train_text_encoder: bool = True
    lora_rank: int = 16
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int | None = None
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99
    ema_on_cpu: bool = free(False)
    caption_dropout: float = 0.1
    min_snr_gamma: float | None = None
    timestep_density: str = "uniform"
    noise_offset: float = 0.0
    checkpointing_steps: int = free(200)
    checkpoints_to_keep: int = free(2)
    mixed_precision: str = free("no")
    gradient_checkpointing: bool = free(False)
    compile: bool = free(False)
    max_bad_steps: int = free(10)
    max_bad_images: float = free(0.1)
    data_threads: int = free(2)
    seed: int = 0
    resume_with_new_settings: bool = free(False)

    def __post_init__(self):
        for name in COUNTS:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        if self.lr_warmup_steps is None:
            warm_up = min(MOST_WARM_UP, self.max_train_steps // WARM_UP_SHARE)
            object.__setattr__(self, "lr_warmup_steps", warm_up)
        for name in ("lr_warmup_steps", "weight_decay", "noise_offset", "data_threads", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require(
            "lr_warmup_steps",
            self.lr_warmup_steps < self.max_train_steps,
            f"less than `max_train_steps` ({self.max_train_steps}), or `learning_rate` is never reached",
        )
        for name in ("learning_rate", "max_grad_norm", "lr_power"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "positive and finite")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)")
        for name in ("caption_dropout", "max_bad_images"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "positive or None")
        for name, choices in CHOICES.items():
            self._require(name, getattr(self, name) in choices, "one of " + ", ".join(choices))
        self._require(
            "batch_size",
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"a multiple of `gradient_accumulation_steps` ({self.gradient_accumulation_steps})",
        )

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            raise ValueError(f"`{name}` must be {requirement}, got {getattr(self, name)!r}.")

    @property
    def checkpoints_dir(self) -> Path:
        return Path(self.output_dir, "checkpoints")

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is a run to go on with: without one nothing would be lost by other settings."""
        return bool(checkpoint_folders(self.checkpoints_dir))

    def settings(self) -> dict[str, object]:
        """All values but the place, as they are stored in `training.json`."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "output_dir"}

    def decisive_settings(self) -> dict[str, object]:
        """Those that a run must keep when it goes on."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("free")}


def claim_output_dir(config: TrainingConfig) -> None:
    """Make the output folder this run's, or find that it is.

    Raises:
        FileExistsError: it is a file, or holds something else.
        ValueError: it holds a run with other settings.
    """
    check_output_dir(config)
    write_json(Path(config.output_dir, RUN_FILE), config.settings(), indent=2)


def check_output_dir(config: TrainingConfig) -> None:
    """Raises what [`claim_output_dir`] raises, and writes nothing."""
    folder = Path(config.output_dir)
    run_file = folder / RUN_FILE
    if run_file.is_file():
        if config.has_checkpoints:
            renewed = RENEWABLE if config.resume_with_new_settings else ()
            settings = config.decisive_settings()
            check_stored_settings(run_file, {name: settings[name] for name in settings if name not in renewed})
    elif holds_something(folder):
        raise FileExistsError(
            f"`output_dir` must be new, empty, or a run to go on with, but {folder} holds something else; "
            "choose another folder."
        )


def check_stored_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Hold the settings that decide a run's result to those that its folder has in `path`, a JSON object.

    One that is not there did not exist when the run began.

    Raises:
        ValueError: the file is damaged, or they differ.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or use another `output_dir`.") from error
    different = [name for name in settings if name in stored and stored[name] != settings[name]]
    if different:
        was, now = ({name: values.get(name) for name in different} for values in (stored, settings))
        renew = "say `resume_with_new_settings` to go on with these, " if set(different) <= set(RENEWABLE) else ""
        raise ValueError(
            f"{path.parent} holds a run with other settings, {was} instead of {now}; use the same settings to go on, "
            f"{renew}or use another `output_dir`."
        )
