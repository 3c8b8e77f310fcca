"""The parts of one run that change from step to step, and what happens in a step."""

import copy
import dataclasses
import hashlib
import os
import random
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.examples import ExampleSource
from .averages import Averages
from .batches import Batches, Place
from .callbacks import StepMetrics
from .checkpoints import checkpoint_folder, load_latest_checkpoint, remove_halves, save_checkpoint
from .config import TrainingConfig
from .denoiser import Denoiser, make_denoiser
from .failures import explained_disk
from .latents import Latents
from .models import Models
from .objective import Draw, Objective
from .optimizers import make_lr_scheduler, make_optimizer
from .prompts import Prompts
from .saving import capture, restore
from .sharding import is_sharded, sums_over_processes
from .stepping import make_stepper
from .tally import Tally, add_up, broken_images, too_many_broken


class Run:
    """A training run between two steps.

    Args:
        step: optimizer steps done, bad ones included.
        seconds: that the steps took, those of earlier calls included.
        denoiser: everything with trained parameters, bare.
        parameters: the trained ones by name; shards of them if the run is sharded.
    """

    def __init__(
        self,
        config: TrainingConfig,
        models: Models,
        source: ExampleSource,
        accelerator: Accelerator,
        caches: str | os.PathLike | None = None,
    ):
        self.config, self.models, self.source, self.accelerator = config, models, source, accelerator
        self.step, self.seconds = 0, 0.0
        self.tally = Tally()
        torch.manual_seed(config.seed)  # adapters begin with random numbers
        for network in models.networks().values():
            network.to(accelerator.device)
        self.denoiser = make_denoiser(models, config).train()
        self.base_digest = digest_of_frozen(models)
        self.objective = Objective(models.scheduler, config)
        self.latents = Latents(models.vae, caches)
        self.prompts = Prompts(models.text_encoder, models.tokenizer, models.text_prefix, caches)
        self.optimizer = make_optimizer(config, self.denoiser)
        self.lr_scheduler = make_lr_scheduler(config, self.optimizer)
        self.plain = copy.deepcopy(self.denoiser).cpu() if is_sharded(accelerator) else self.denoiser
        if config.compile:
            self.denoiser.unet.compile()
        self.stepper = make_stepper(accelerator, config, self.denoiser, self.optimizer)
        self.parameters = dict(self.denoiser.trained_parameters())
        self.averages = Averages(self.parameters, config.ema_decay, config.ema_on_cpu)
        self.checkpoint_folder: Path | None = None

    @property
    def scaler(self):
        """Of losses in fp16, else None."""
        return self.accelerator.scaler

    def batches(self) -> Generator[list[Place], None, None]:
        """This process's share of the steps that are left."""
        config, accelerator = self.config, self.accelerator
        slots = range(accelerator.process_index, config.batch_size, accelerator.num_processes)
        batches = Batches(
            self.source, self.latents.load, slots, config.caption_dropout, config.seed, config.data_threads
        )
        return batches.from_step(self.step, config.max_train_steps)

    def train_step(self, places: Sequence[Place], waited: float = 0.0) -> StepMetrics:
        """One optimizer step. What the models draw depends on seed and step alone."""
        started = time.perf_counter()
        self.tally.count_images(place.broken for place in places)
        torch.manual_seed(
            random.Random(f"{self.config.seed}/{self.step}/{self.accelerator.process_index}").getrandbits(63)
        )
        (loss,) = sums_over_processes(self.accelerator, [self.backward(places) / self.accelerator.num_processes])
        learning_rate = self.optimizer.param_groups[0]["lr"]
        grad_norm, good = self.stepper.step(loss)
        self.follow(good)
        self.step += 1
        seconds = time.perf_counter() - started + waited
        self.seconds += seconds
        speed = self.config.batch_size / seconds
        return StepMetrics(self.step, loss, learning_rate, grad_norm, speed, self.tally.bad_steps)

    def backward(self, places: Sequence[Place]) -> float:
        """Gradients of this process's share, part by part; returns its mean loss."""
        parts = self.config.gradient_accumulation_steps
        size, total = len(places) // parts, 0.0
        for i in range(parts):
            with self.stepper.part(last=i + 1 == parts):
                loss = self.loss(places[i * size : (i + 1) * size]) / parts
                self.stepper.backward(loss)
            total += loss.item()
        return total

    def loss(self, places: Sequence[Place]) -> torch.Tensor:
        """Mean loss of some places of the batch."""
        generators = [torch.Generator().manual_seed(place.seed) for place in places]
        latents = self.latents.draw([place.loaded for place in places], generators).to(self.accelerator.device)
        drawn = [self.objective.draw(generator, latents[:1].shape) for generator in generators]
        draw = Draw(*(torch.cat(parts) for parts in zip(*drawn, strict=True))).to(self.accelerator.device)
        noisy = self.objective.noisy(latents, draw)
        captions = [place.caption for place in places]
        with self.stepper.autocast():
            if self.denoiser.text_encoder is None:
                prompt_embeds, mask = self.prompts.encode(captions)
                prediction = self.stepper.wrapped(noisy, draw.times, prompt_embeds, mask)
            else:
                prediction = self.stepper.wrapped(noisy, draw.times, captions=captions)
        return self.objective.per_sample(prediction, latents, draw).mean()

    def follow(self, good: bool) -> None:
        """What comes after the optimizer's step, taken (good) or left out.

        In fp16 the scaler leaves steps out until it has found its scale: bad ones are those with none left to lower.
        """
        self.tally.count_step(good or (self.scaler is not None and self.scaler.get_scale() >= 1))
        with warnings.catch_warnings():  # PyTorch wants a step of the optimizer before; a bad one is none
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.lr_scheduler.step()
        if good:
            self.averages.step()

    def check(self) -> None:
        """
        Raises:
            FloatingPointError: too many bad steps in a row.
            ValueError: too many different images that cannot be read.
        """
        if self.tally.bad_in_a_row >= self.config.max_bad_steps:
            where = "There is no checkpoint yet"
            if self.checkpoint_folder is not None:
                where = f"{self.checkpoint_folder} was saved before, and `resume_with_new_settings` goes on from there"
            raise FloatingPointError(
                f"Loss and gradient must be finite, but were not in the last {self.tally.bad_in_a_row} steps, up to "
                f"step {self.step}; {where}. Lower `learning_rate` ({self.config.learning_rate:g}) or `max_grad_norm` "
                f"({self.config.max_grad_norm:g}), use bf16 rather than fp16, and look at the data of these steps."
            )
        seen, broken = sums_over_processes(self.accelerator, [self.tally.seen, self.tally.broken])
        if too_many_broken(seen, broken, self.config.max_bad_images):  # on every process alike
            total = add_up(self.gather_objects(self.tally.state_dict()))
            message = broken_images(total, self.source.examples_per_epoch, self.config.max_bad_images)
            if message is not None:
                raise ValueError(message)

    def save(self) -> Path:
        """Write a checkpoint; called on every process.

        Raises:
            NoSpaceLeft: it could not be written; the one before is whole.
        """
        checkpoint = capture(self)
        folder = self.config.checkpoints_dir
        if self.accelerator.is_main_process:
            with explained_disk(self.step, folder, self.checkpoint_folder):
                save_checkpoint(folder, checkpoint, self.config.checkpoints_to_keep)
        self.accelerator.wait_for_everyone()
        self.checkpoint_folder = checkpoint_folder(folder, self.step)
        return self.checkpoint_folder

    def resume(self) -> bool:
        """Load the newest whole checkpoint, if there is one."""
        folder, checkpoint = self.config.checkpoints_dir, None
        if self.accelerator.is_main_process:
            remove_halves(folder)
            checkpoint = load_latest_checkpoint(folder, warn=self.accelerator.print)
        if not restore(self, checkpoint):
            return False
        self.checkpoint_folder = checkpoint_folder(folder, self.step)
        self.accelerator.print(f"going on from step {self.step} in {folder}")
        return True

    @contextmanager
    def averaged_weights(self) -> Iterator[Denoiser]:
        """The denoiser with averaged weights, in evaluation mode and never sharded, on every process alike.

        Unless the run is sharded, `models` hold them too inside the context; a sharded run gathers a copy.
        """
        if self.plain is not self.denoiser:
            self.load_plain()
            try:
                yield self.plain
            finally:
                self.plain.cpu()  # the shards need the room
            return
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.denoiser.eval()
        self.fill(self.averages.whole())
        try:
            yield self.denoiser
        finally:
            self.fill(kept.items())
            self.denoiser.train()

    @torch.no_grad()
    def fill(self, values: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, value in values:
            self.parameters[name].copy_(value)

    @torch.no_grad()
    def load_plain(self) -> None:
        """Averages into the copy that is not sharded."""
        parameters = dict(self.plain.eval().trained_parameters())
        for name, value in self.averages.whole():
            parameters[name].copy_(value)
        self.plain.to(self.accelerator.device)

    def finish(self) -> Models:
        """The models with averaged weights; those that were given, unless the run is sharded."""
        self.accelerator.unwrap_model(self.stepper.wrapped, keep_fp32_wrapper=False)
        if self.plain is self.denoiser:
            self.fill(self.averages.whole())
            self.denoiser.eval()
        else:
            self.load_plain()
        text_encoder = self.plain.text_encoder or self.models.text_encoder
        return dataclasses.replace(self.models, unet=self.plain.unet, text_encoder=text_encoder)

    def gather_objects(self, value: Any) -> list[Any]:
        """A JSON value of each process, in order, on all."""
        return gather_object([value]) if self.accelerator.num_processes > 1 else [value]


def digest_of_frozen(models: Models) -> str:
    """Tells apart what a run is not to be taken up with: other frozen weights, another tokenizer or noise schedule."""
    digest = hashlib.sha256()
    vocabulary = sorted(models.tokenizer.get_vocab().items())
    schedule = sorted((name, repr(x)) for name, x in models.scheduler.config.items() if not name.startswith("_"))
    digest.update(repr((vocabulary, models.text_prefix, schedule)).encode())
    for name, network in models.networks().items():
        for key, parameter in network.named_parameters():
            if not parameter.requires_grad:
                shown = parameter.detach().flatten()[:64].float().cpu().numpy()
                digest.update(f"{name}.{key} {tuple(parameter.shape)}".encode() + shown.tobytes())
    return digest.hexdigest()
