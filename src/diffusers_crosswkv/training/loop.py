"""The training loop: steps, checkpoints, callbacks, and how a run stops and goes on."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.examples import ExampleSource
from ..host_memory import freed_memory_kept
from .batches import CaptionedImages, Place, as_source
from .callbacks import Callback, StepMetrics
from .config import TrainingConfig, claim_output_dir
from .denoiser import Denoiser
from .failures import OF_CALLBACKS, explained_memory, memory_advice
from .models import Models
from .run import Run
from .sharding import any_process, make_accelerator
from .stopping import TrainingInterrupted, stop_requests
from .tally import Tally


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Args:
        models: with the averaged (EMA) weights.
        denoiser: what was trained of them; adapters and initial states are in it.
        seconds: that the steps took, those of earlier calls of an interrupted run included.
        tally: what was left out: bad steps, images that cannot be read.
    """

    models: Models
    denoiser: Denoiser
    steps: int
    seconds: float
    tally: Tally


def train(
    config: TrainingConfig,
    models: Models,
    data: ExampleSource | CaptionedImages,
    *,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    caches: str | os.PathLike | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Train on captioned images; in the end `models` hold the averaged (EMA) weights.

    A run that was interrupted goes on where its newest checkpoint is, and gives the weights that it would have given.

    Args:
        data: a data set in memory, or a source made for this `batch_size` and `seed`.
        callbacks: called between steps.
        caches: a folder for latents and for embeddings of captions, computed once; any number of runs may share it.
        accelerator: made by [`make_accelerator`]; by default one as `accelerate launch` configured it.

    Raises:
        FileExistsError, ValueError: the output folder holds something else, a run with other settings, or only damaged
            checkpoints; settings do not fit each other or the number of processes; too many images cannot be read.
        FloatingPointError: `max_bad_steps` in a row without a finite loss and gradient.
        NoSpaceLeft: a checkpoint could not be written; the one before is whole.
        OutOfMemory: with the settings that help most.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    accelerator = accelerator or make_accelerator(config)
    if accelerator.is_main_process:
        claim_output_dir(config)
    accelerator.wait_for_everyone()
    source = as_source(data, config.batch_size, config.seed)
    with explained_memory(partial(memory_advice, config, accelerator.num_processes)):
        run = Run(config, models, source, accelerator, caches)
        run.resume()
    with explained_memory(lambda: OF_CALLBACKS):
        for callback in callbacks:
            callback.start(run)
    with freed_memory_kept(accelerator.device):
        take_steps(run, callbacks, progress and accelerator.is_main_process)
    averaged = run.finish()
    for callback in callbacks:
        callback.end(run)
    return TrainingResult(averaged, run.plain, run.step, run.seconds, run.tally)


def take_steps(run: Run, callbacks: Sequence[Callback], progress: bool) -> None:
    """The steps that are left.

    Raises:
        TrainingInterrupted: a signal asked for a stop; saved after the step that it came in.
    """
    total = run.config.max_train_steps
    bar = tqdm(total=total, initial=run.step, desc="training", unit="step", disable=not progress, dynamic_ncols=True)
    with bar, stop_requests() as stop, closing(run.batches()) as batches:
        while run.step < total:
            asked = time.perf_counter()
            places = next_share(run, batches)
            with explained_memory(partial(memory_advice, run.config, run.accelerator.num_processes)):
                metrics = run.train_step(places, waited=time.perf_counter() - asked)
            show(bar, metrics)
            for callback in callbacks:
                callback.step(run, metrics)
            run.check()
            stopping = any_process(run.accelerator, stop.is_set())  # a signal may reach one process alone
            due = run.step % run.config.checkpointing_steps == 0 and run.tally.bad_in_a_row == 0
            if stopping or due or run.step == total:
                folder = run.save()
                for callback in callbacks:
                    callback.checkpoint(run, folder)
            if stopping and run.step < total:
                raise TrainingInterrupted(f"Stopped after {run.step} of {total} steps; all is saved.")
            with explained_memory(lambda: OF_CALLBACKS):
                for callback in callbacks:
                    callback.pause(run, metrics)


def next_share(run: Run, batches: Iterator[list[Place]]) -> list[Place]:
    """This process's part of the next batch; if one process has none, all stop, and none waits for it for ever."""
    places, failure = [], None
    try:
        places = next(batches)
    except Exception as error:
        failure = error
    if any_process(run.accelerator, failure is not None):
        raise failure or RuntimeError("Another process could not get its images; its message says why.")
    return places


def show(bar: tqdm, metrics: StepMetrics) -> None:
    bar.update()
    shown = {"loss": f"{metrics.loss:.4f}", "images/s": f"{metrics.images_per_second:.3g}"}
    bar.set_postfix(shown | ({"bad steps": metrics.bad_steps} if metrics.bad_steps else {}), refresh=False)
