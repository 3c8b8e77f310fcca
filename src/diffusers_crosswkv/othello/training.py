"""A model of move sequences, and its training: one thread, saved often, and it goes on where it was stopped."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..host_memory import freed_memory_kept
from ..sequences import SequenceConfig, SequenceModel
from ..training.checkpoints import Checkpoint, load_latest_checkpoint, save_checkpoint
from ..training.optimizers import Muon, load_optimizer_state, optimizer_state, parameter_groups
from ..training.stopping import TrainingInterrupted, stop_requests
from . import rules
from .lessons import VOCABULARY, Batch, Lessons
from .rules import MOST_MOVES

SAVE_SECONDS = 60.0
WARM_UP = 0.05  # share of the steps in which the learning rate rises; then it falls to 0
LOG_STEPS = 25


class MoveModel(SequenceModel):
    """Tokens `[B, T]`, the start and moves, to logits `[B, T, 64]` of the move that follows each of them.

    Each place of the sequence has an embedding of its own, as in Othello-GPT, whatever the mixer.
    """

    def __init__(self, config: SequenceConfig):
        super().__init__(config)
        self.places = nn.Embedding(MOST_MOVES, config.width)

    @property
    def device(self) -> torch.device:
        return self.places.weight.device

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().embed(tokens) + self.places.weight[: tokens.shape[1]]


@dataclass(frozen=True)
class Plan:
    """One training: a mixer, a lesson, how long; `start_from` is a lesson whose model goes on to learn this one."""

    mixer: str
    lesson: str
    width: int
    head_dim: int
    layers: int
    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    start_from: str | None = None


def make_model(plan: Plan) -> MoveModel:
    """With seeded random weights."""
    torch.manual_seed(plan.seed)
    shape = (plan.width, plan.head_dim, plan.layers)
    return MoveModel(SequenceConfig(VOCABULARY, rules.SQUARES, *shape, plan.mixer, start="nothing"))


class Training:
    """A training in `folder`, which is its own; `model` is as far as it has come."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        start: Mapping[str, torch.Tensor] | None = None,
        device: torch.device | str = "cpu",
    ):
        """
        Raises:
            ValueError: the folder holds a training with another plan.
        """
        self.plan, self.folder, self.step, self.seconds = plan, folder, 0, 0.0
        self.losses: list[tuple[int, float]] = []
        self.model = make_model(plan).to(device)
        if start is not None:
            self.model.load_state_dict(start)
        self.optimizer = Muon(parameter_groups(self.model, 0.0), plan.learning_rate)
        checkpoint = load_latest_checkpoint(folder)
        if checkpoint is not None:
            self.take_up(checkpoint)

    def take_up(self, checkpoint: Checkpoint) -> None:
        if checkpoint.values["plan"] != asdict(self.plan):
            raise ValueError(
                f"{self.folder} must hold a training of {self.plan}, but holds one of {checkpoint.values['plan']}; use"
                " another output folder."
            )
        self.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer_state(self.optimizer, checkpoint.tensors.get("optimizer", {}), checkpoint.values["optimizer"])
        self.step, self.seconds = checkpoint.step, checkpoint.values["seconds"]
        self.losses = checkpoint.values["losses"]

    def save(self) -> None:
        tensors, values = optimizer_state(self.optimizer)
        kept = {"plan": asdict(self.plan), "seconds": self.seconds, "losses": self.losses, "optimizer": values}
        save_checkpoint(
            self.folder, Checkpoint(self.step, {"model": self.model.state_dict(), "optimizer": tensors}, kept), 1
        )

    def run(self, progress: bool = True) -> None:
        """Train to the end.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the training is saved.
        """
        lessons = Lessons(self.plan.lesson, self.plan.batch_size, self.plan.seed)
        name = f"{self.plan.mixer}, {self.plan.lesson}"
        bar = tqdm(total=self.plan.steps, initial=self.step, desc=name, unit="step", disable=not progress)
        with bar, stop_requests() as stop, freed_memory_kept(self.model.device):
            saved = time.monotonic()
            while self.step < self.plan.steps:
                loss = self.take_step(lessons)
                bar.update()
                if self.step % LOG_STEPS == 0:
                    self.losses.append((self.step, round(loss, 5)))
                    bar.set_postfix(loss=f"{loss:.4f}")
                if time.monotonic() - saved > SAVE_SECONDS or stop.is_set() or self.step == self.plan.steps:
                    self.save()
                    saved = time.monotonic()
                if stop.is_set() and self.step < self.plan.steps:
                    raise TrainingInterrupted(f"Stopped at step {self.step} of {self.plan.steps}, saved.")
        self.model.eval()

    def take_step(self, lessons: Lessons) -> float:
        """One update of the weights; returns the loss, in nats per move."""
        before = time.process_time()
        batch = lessons.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * rate_at(self.step, self.plan.steps)
        loss = loss_of(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - before
        return loss.item()


def loss_of(model: MoveModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy with the targets, mean over the moves that were made."""
    made = batch.targets.sum(-1) > 0
    logits = model(batch.tokens.to(model.device))
    return F.cross_entropy(logits[made], batch.targets[made].to(model.device))


def rate_at(step: int, steps: int) -> float:
    """Of the learning rate: up in a straight line, down to 0 in another."""
    return min((step + 1) / max(WARM_UP * steps, 1), (steps - step) / steps)
