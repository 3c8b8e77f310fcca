"""Watches the states of a U-Net while it is trained: whether they stay bounded, and use their room."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..models.state_statistics import StateStatistics, observe_states, state_statistics
from ..training.callbacks import Callback, StepMetrics
from .records import MetricsFile, Trackers

if TYPE_CHECKING:
    from ..training.run import Run

STATES_FILE = "states.jsonl"
DRAWN_TIMES = 64  # the noisiest of so many is the one that is looked at
TRACKED = ("rms", "stable_rank")


class StateLog(Callback):
    """Every so many steps, one forward pass with the weights of that step, and the statistics of each layer's states.

    Prompts and noise are the same every time, so that two entries differ by what training did in between.

    Args:
        file: receives `{"step": ..., "layers": {name: StateStatistics}}`, a line per look.
        captions: the prompts to look at, at least one.
        every: steps between two looks; the last step is looked at too.
        trackers: where root mean square and stable rank of each layer go besides.

    Raises:
        ValueError: no caption, or `every` below 1.
    """

    def __init__(self, file: MetricsFile, captions: Sequence[str], every: int, trackers: Trackers | None = None):
        if every < 1 or not captions:
            raise ValueError(f"`every` must be at least 1 with a caption or more, got {every} and {list(captions)}.")
        self.file, self.captions, self.every, self.trackers = file, list(captions), every, trackers
        self.is_main = False

    def start(self, run: "Run") -> None:
        self.is_main = run.accelerator.is_main_process
        if self.is_main:
            self.file.open(run.step)
        if run.step == 0:
            self.look(run, 0)

    def step(self, run: "Run", metrics: StepMetrics) -> None:
        if metrics.step % self.every == 0 or metrics.step == run.config.max_train_steps:
            self.look(run, metrics.step)

    def end(self, run: "Run") -> None:
        self.close()

    def close(self) -> None:
        self.file.close()

    def look(self, run: "Run", step: int) -> None:
        """Called on every process, for the forward pass may gather shards."""
        statistics = look_at_states(run, self.captions)
        if not self.is_main:
            return
        layers = {name: as_json(found) for name, found in statistics.items()}
        self.file.write(step=step, layers=layers)
        if self.trackers is not None:
            values = {f"state_{x}/{name}": getattr(found, x) for x in TRACKED for name, found in statistics.items()}
            self.trackers.log({name: value for name, value in values.items() if math.isfinite(value)}, step)


@torch.no_grad()
def look_at_states(run: "Run", captions: Sequence[str]) -> dict[str, StateStatistics]:
    """What `captions` leave in each layer's state with the weights as they are; the image is noise."""
    denoiser, device = run.denoiser, run.accelerator.device
    config, generator = denoiser.unet.config, torch.Generator().manual_seed(0)
    side = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size] * 2
    noise = torch.randn(1, config.in_channels, *side, generator=generator).to(device)
    noisiest = run.objective.draw(generator, (DRAWN_TIMES, 1, 1, 1)).times.max().to(device)
    found: dict[str, list[torch.Tensor]] = {}
    denoiser.eval()
    try:
        eager = torch.compiler.set_stance("force_eager")  # type: ignore[no-untyped-call]
        with observe_states(denoiser.unet) as states, run.stepper.autocast(), eager:
            for caption in captions:  # one by one, so that memory does not depend on how many there are
                if denoiser.text_encoder is None:
                    run.stepper.wrapped(noise, noisiest[None], *run.prompts.encode([caption]))
                else:
                    run.stepper.wrapped(noise, noisiest[None], captions=[caption])
                for name, state in states.items():
                    found.setdefault(name, []).append(state)
    finally:
        denoiser.train()
    return {name: state_statistics(torch.cat(of_captions)) for name, of_captions in found.items()}


def as_json(found: StateStatistics) -> dict[str, float | bool | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(found).items()}
