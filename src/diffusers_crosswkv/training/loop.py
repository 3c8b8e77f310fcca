"""The training loop: what happens in a step, and how a run stops and goes on."""

import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.text_windows import encode_texts
from .batches import Batch, CaptionedImages, draw_batch
from .checkpoints import Checkpoint, load_latest_checkpoint, save_checkpoint
from .config import TrainingConfig, claim_output_dir
from .objective import Draw, Objective
from .optimizers import make_lr_scheduler, make_optimizer


@dataclass(frozen=True)
class Models:
    """What is trained, U-Net and text encoder, and what they are trained with.

    Args:
        scheduler: the noise schedule and what the U-Net predicts.
        text_prefix: put before every caption, `<|endoftext|>` in the paper.
    """

    unet: UNet2DConditionModel
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: DDPMScheduler
    text_prefix: str = ""

    def trained(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for model in self.trained().values() for parameter in model.parameters()]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped the run between two steps; it is saved, and the same call goes on."""


def train(config: TrainingConfig, models: Models, dataset: CaptionedImages, progress: bool = True) -> float:
    """Train U-Net and text encoder on captioned images; in the end `models` hold the averaged (EMA) weights.

    Returns the seconds that the steps took, those of earlier calls of an interrupted run included.

    A run that was interrupted goes on where its newest checkpoint is, and gives the weights that it would have given.

    Raises:
        FileExistsError, ValueError: the output folder holds something else, a run with other settings, or only damaged
            checkpoints; or the number of processes does not divide the batch.
        FloatingPointError: the loss is not finite.
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of processes, got {config.batch_size} and "
            f"{accelerator.num_processes}."
        )
    if accelerator.is_main_process:
        claim_output_dir(config)
    accelerator.wait_for_everyone()
    run = Run(config, models, dataset, accelerator)
    start = run.resume()
    bar = partial(tqdm, disable=not progress or not accelerator.is_main_process, dynamic_ncols=True)
    with (
        bar(total=config.max_train_steps, initial=start, desc="training", unit="step") as progress_bar,
        stop_requests() as stop,
    ):
        for step in range(start, config.max_train_steps):
            started = time.perf_counter()
            loss = run.step(step)
            run.seconds += time.perf_counter() - started
            progress_bar.update()
            progress_bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            done = step + 1
            if stop.is_set() or done % config.checkpointing_steps == 0 or done == config.max_train_steps:
                run.save(done)
            if stop.is_set() and done < config.max_train_steps:
                raise TrainingInterrupted(f"Stopped after {done} of {config.max_train_steps} steps; all is saved.")
    run.finish()
    return run.seconds


class Run:
    """The parts of one run that change from step to step."""

    def __init__(self, config: TrainingConfig, models: Models, dataset: CaptionedImages, accelerator: Accelerator):
        self.config, self.models, self.dataset, self.accelerator = config, models, dataset, accelerator
        self.objective = Objective(models.scheduler, config)
        self.seconds = 0.0
        for model in models.trained().values():
            model.to(accelerator.device).train()
        self.ema = EMAModel(models.parameters(), decay=config.ema_decay, foreach=True)
        optimizer = make_optimizer(config, nn.ModuleList(models.trained().values()))
        self.lr_scheduler = make_lr_scheduler(config, optimizer)
        self.optimizer = optimizer
        self.unet, self.text_encoder, self.prepared_optimizer = accelerator.prepare(
            models.unet, models.text_encoder, optimizer
        )

    def step(self, step: int) -> float:
        """One optimizer step; returns this process's loss. What the models draw depends on seed and step alone."""
        torch.manual_seed(random.Random(f"{self.config.seed}/{step}/{self.accelerator.process_index}").getrandbits(63))
        loss = self.loss(self.batch(step))
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss of step {step} must be finite, got {value}; lower `learning_rate` "
                f"({self.config.learning_rate}) or `max_grad_norm`. Checkpoints are in {self.config.checkpoints_dir}."
            )
        self.accelerator.backward(loss)
        parameters = self.models.parameters()
        self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.prepared_optimizer.step()
        self.lr_scheduler.step()
        self.prepared_optimizer.zero_grad()
        self.ema.step(parameters)
        return value

    def batch(self, step: int) -> Batch:
        """This process's share of a step."""
        batch = draw_batch(
            self.dataset,
            step,
            self.config.batch_size,
            self.config.caption_dropout,
            self.models.scheduler.config.num_train_timesteps,
            self.config.seed,
        )
        batch = batch.part(self.accelerator.process_index, self.accelerator.num_processes)
        return batch.to(self.accelerator.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        captions = [self.models.text_prefix + caption for caption in batch.captions]
        with self.accelerator.autocast():
            prompt_embeds, mask = encode_texts(self.text_encoder, self.models.tokenizer, captions)
            draw = Draw(batch.noise, batch.timesteps)
            noisy = self.objective.noisy(batch.images, draw)
            prediction = self.unet(noisy, draw.times, prompt_embeds, encoder_attention_mask=mask).sample
            return self.objective.per_sample(prediction, batch.images, draw).mean()

    def save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            tensors = {name: model.state_dict() for name, model in self.models.trained().items()}
            tensors["ema"] = {str(i): x for i, x in enumerate(self.ema.shadow_params)}
            optimizer_state = self.optimizer.state_dict()["state"]
            tensors["optimizer"] = {f"{i}.{key}": x for i, of in optimizer_state.items() for key, x in of.items()}
            values = {
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "ema_step": self.ema.optimization_step,
                "seconds": self.seconds,
            }
            save_checkpoint(
                self.config.checkpoints_dir, Checkpoint(step, tensors, values), self.config.checkpoints_to_keep
            )
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns the step to go on with."""
        checkpoint = load_latest_checkpoint(self.config.checkpoints_dir, warn=self.accelerator.print)
        if checkpoint is None:
            return 0
        for name, model in self.models.trained().items():
            try:
                model.load_state_dict(checkpoint.tensors[name])
            except RuntimeError as error:
                raise ValueError(
                    f"The checkpoints in {self.config.checkpoints_dir} must be of this {name}, but hold another one; "
                    "use the model they were made with, or another `output_dir`."
                ) from error
        self.seconds = checkpoint.values["seconds"]
        shadow = checkpoint.tensors["ema"]
        self.ema.shadow_params = [shadow[str(i)].to(x) for i, x in enumerate(self.ema.shadow_params)]
        self.ema.optimization_step = checkpoint.values["ema_step"]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, x in checkpoint.tensors["optimizer"].items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = x
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.lr_scheduler.load_state_dict(checkpoint.values["lr_scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.accelerator.print(f"going on from step {checkpoint.step} in {self.config.checkpoints_dir}")
        return checkpoint.step

    def finish(self) -> None:
        self.ema.copy_to(self.models.parameters())
        for model in (self.unet, self.text_encoder):
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising in the middle of a step; a second one raises."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def request(number, frame):
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
