"""What goes wrong in long runs, in the words of the person who has to mend it."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch

from .config import TrainingConfig

OF_CALLBACKS = (
    "Validation must fit into memory beside the training, and does not; fewer images at once or smaller ones help: "
    "`num_validation_images`, `validation_prompts`. Checkpoints are as they were."
)
ALLOCATION_FAILED = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(RuntimeError):  # noqa: N818
    """A step needs more memory than there is; the message names the settings that help most."""


class NoSpaceLeft(OSError):  # noqa: N818
    """A checkpoint could not be written; the one before is whole."""


@contextmanager
def explained_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that failed into [`OutOfMemory`], with what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
            words in str(error).lower() for words in ALLOCATION_FAILED
        ):
            raise OutOfMemory(advice()) from error
        raise


def memory_advice(config: TrainingConfig, num_processes: int) -> str:
    """The three settings that save most memory and are not in use yet."""
    at_once = config.batch_size // num_processes // config.gradient_accumulation_steps
    advice = []
    if not config.gradient_checkpointing:
        advice.append("set `gradient_checkpointing` (activations are computed twice, not kept)")
    if at_once > 1:
        advice.append(
            f"raise `gradient_accumulation_steps` from {config.gradient_accumulation_steps} "
            f"to {smallest_divisor(at_once) * config.gradient_accumulation_steps} "
            f"({at_once} images are computed at once now; the result stays the same)"
        )
    if config.mixed_precision == "no":
        advice.append("set `mixed_precision` to bf16")
    if config.weights == "all":
        advice.append("train less: `weights` attn2 or lora")
    if config.ema_decay and not config.ema_on_cpu:
        advice.append("set `ema_on_cpu`")
    advice.append("lower the resolution")
    return "A training step must fit into memory, and does not. What helps most: " + "; ".join(advice[:3]) + "."


def smallest_divisor(n: int) -> int:
    return next(divisor for divisor in range(2, n + 1) if n % divisor == 0)


@contextmanager
def explained_disk(step: int, folder: Path, last_whole: Path | None) -> Iterator[None]:
    """Say what a checkpoint that could not be written leaves behind."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        kept = f"{last_whole} is whole and stays" if last_whole else "there is no earlier one"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        full = full or "No space left" in str(error) or "too large" in str(error)
        fix = "free some space, or set a smaller `checkpoints_to_keep`" if full else "mend what it names"
        raise NoSpaceLeft(
            f"The checkpoint of step {step} could not be written to {folder} ({error}); {kept}. "
            f"To go on, {fix}, and start the same run again."
        ) from error
