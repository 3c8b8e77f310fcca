"""What may happen between two steps: validation, records, whatever a run's user wants."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did.

    Args:
        step: from 1.
        loss: mean over the batch, over all processes; not finite in a bad step.
        learning_rate: of the step.
        grad_norm: before clipping.
        images_per_second: of the step, over all processes, with what it waited for its data.
        bad_steps: steps so far that were left out because loss or gradient was not finite.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    images_per_second: float
    bad_steps: int


class Callback:
    """Called between steps, on every process alike, so that each method may use collective operations."""

    def start(self, run: "Run") -> None:
        """Before the first step of this call; `run.step` says how many are done if the run goes on."""

    def step(self, run: "Run", metrics: StepMetrics) -> None:
        """After every step, before its checkpoint if there is one: for what is quick."""

    def pause(self, run: "Run", metrics: StepMetrics) -> None:
        """After every step and its checkpoint, but not if the run is stopping: for what takes time."""

    def checkpoint(self, run: "Run", folder: Path) -> None:
        """After a checkpoint was written."""

    def end(self, run: "Run") -> None:
        """After the last step; the models hold the averaged weights."""
