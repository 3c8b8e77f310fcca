"""One training of the suite, and what is measured with it: a cell, and its row."""

import dataclasses
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..environment import environment
from ..evaluation.fitting import fit
from ..evaluation.kernel_rows import commit, processor
from ..sequences import SequenceConfig, SequenceModel
from ..sequences.wkv7_mixer import WKV7Mixer
from .automata import TASKS, Automaton
from .words import TRAINED_LENGTH, draw

Row = dict[str, Any]
Options = dict[str, Any]

ARMS: dict[str, Options] = {
    "wkv7, rate to 2": {"mixer": "wkv7", "rate_limit": 2},
    "wkv7, rate to 2, 4 updates": {"mixer": "wkv7", "rate_limit": 2, "updates": 4},
    "wkv7, rate to 1": {"mixer": "wkv7", "rate_limit": 1},
    "diagonal": {"mixer": "diagonal"},
    "softmax": {"mixer": "softmax"},
}
LENGTHS = (4, 8, 16, 32, 64, 128, 256)
CURRICULUM = (0.1, 0.5)  # of the steps
TEST_SEED = 1_000_003  # no training has it


@dataclasses.dataclass(frozen=True)
class Setup:
    """How every cell is trained and tested.

    `value_decay` is the weight decay of what writes values, in layers whose rate goes to 2 alone: their tokens may
    turn the state and write nothing, and what they write by habit adds up in words longer than trained. The others
    can only write.
    """

    width: int = 32
    head_dim: int = 8
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 5e-3
    value_decay: float = 4.0
    test_words: int = 512
    longest: int = LENGTHS[-1]


WHOLE_GROUPS = ("s5", "a5", "z60")  # any element of a large group is a token
QUICK = Setup(steps=2, batch_size=8, test_words=8, longest=32)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A task, who learns it, and the seed of weights and words."""

    task: str
    arm: str
    layers: int
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.arm}, {self.layers} layer{'s' * (self.layers > 1)}, seed {self.seed}"


def setup_of(cell: Cell) -> Setup:
    return Setup(steps=3000) if cell.task in WHOLE_GROUPS else Setup()


def run_cell(cell: Cell, setup: Setup, progress: bool = True) -> Row:
    """Train on words of 16 tokens, test on longer ones; a minute or so.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    automaton = TASKS[cell.task]
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        model = SequenceModel(config_of(cell, setup))
    loss = train(model, automaton, cell, setup, progress)
    seconds = time.perf_counter() - start
    return {
        **dataclasses.asdict(cell),
        "setup": dataclasses.asdict(setup),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": significant(loss),
        **measure(model, automaton, setup),
        "seconds": round(seconds, 1),
        "processor": processor(),
        "commit": commit(),
        **environment(torch.device("cpu")),
    }


def config_of(cell: Cell, setup: Setup) -> SequenceConfig:
    automaton = TASKS[cell.task]
    return SequenceConfig(
        automaton.vocabulary,
        automaton.classes,
        width=setup.width,
        head_dim=setup.head_dim,
        layers=cell.layers,
        **ARMS[cell.arm],
    )


def train(model: SequenceModel, automaton: Automaton, cell: Cell, setup: Setup, progress: bool) -> float:
    """Cross entropy at every token of fresh words; the mean loss of the last steps."""
    generator = torch.Generator().manual_seed(cell.seed)
    losses = []

    def loss_of_step(step: int) -> torch.Tensor:
        share = share_of_all_tokens(step / setup.steps)
        tokens, labels = draw(automaton, setup.batch_size, TRAINED_LENGTH, generator, held_out=False, share=share)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss of {cell} is {loss.item()} at step {step}.")
        losses.append(loss.item())
        return loss

    fit(
        model, loss_of_step, setup.steps, setup.learning_rate, str(cell), progress, values_of(model), setup.value_decay
    )
    tail = losses[-max(setup.steps // 20, 1) :]
    return sum(tail) / len(tail)


def values_of(model: SequenceModel) -> list[nn.Parameter]:
    """The projections to values of layers whose rate goes to 2."""
    mixers = [x for x in model.modules() if isinstance(x, WKV7Mixer) and x.rate_limit == 2]
    return [parameter for mixer in mixers for parameter in mixer.to_v.parameters()]


def share_of_all_tokens(progress: float) -> float:
    """The curriculum of large groups: generators alone, then more and more tokens of any kind, then all."""
    begin, end = CURRICULUM
    return min(max((progress - begin) / (end - begin), 0), 1)


@torch.inference_mode()
def measure(model: SequenceModel, automaton: Automaton, setup: Setup) -> Row:
    """Shares that are right at each length L: of all tokens up to the L-th, and of the L-th tokens alone."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    tokens, labels = draw(automaton, setup.test_words, setup.longest, generator, held_out=True)
    lengths = [length for length in LENGTHS if length <= setup.longest]
    right = torch.cat([model(part).argmax(-1) for part in tokens.split(128)]) == labels
    return {
        "accuracy": {str(n): share(right[:, :n]) for n in lengths},
        "last": {str(n): share(right[:, n - 1]) for n in lengths},
        **transitions(model, tokens[:16]),
    }


def share(right: torch.Tensor) -> float:
    return round(right.double().mean().item(), 5)


def transitions(model: SequenceModel, tokens: torch.Tensor) -> Row:
    """Of every layer and head, over test tokens: the mean in-context rate, and the mean of what the decay keeps.

    A swap needs a rate of 2 and a decay that keeps all.
    """
    rates, kept = [], []
    for block, x in zip(model.blocks, model.trace(tokens).hidden, strict=False):
        mixer = block.mixer
        if isinstance(mixer, WKV7Mixer):
            write = mixer.write(block.norm(x))  # type: ignore[operator]
            rates.append([significant(x) for x in (write.a.mean((0, 1, 3)) * mixer.delta_rule).tolist()])
            kept.append([significant(x) for x in write.w.exp().mean((0, 1, 3)).tolist()])
    return {"mean_rate": rates, "mean_decay": kept} if rates else {}


def significant(x: float) -> float:
    return float(f"{x:.6g}")
