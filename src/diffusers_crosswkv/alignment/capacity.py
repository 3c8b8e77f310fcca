"""How many facts a state holds: recall of values by key from a text of random facts, without any picture.

One layer whose state has `K x K` numbers, in one head or several. The text is a list of facts, each one token that
carries a key and a value; a query asks for the value of one key. Softmax attention keeps every token and can always
look one up; a state must hold them all.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn

from ..evaluation.fitting import fit
from ..models import CrossWKV

NUM_KEYS, NUM_VALUES = 256, 64
QUERIES = 32


@dataclass(frozen=True)
class Recall:
    """Share of queries answered right, by the number of facts in the text."""

    layer: str
    head_dim: int
    facts: int
    accuracy: float
    chance: float
    steps: int
    seed: int


class Reader(nn.Module):
    """Embeddings, one layer that reads the text, and a classifier of values."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.keys, self.values = nn.Embedding(NUM_KEYS, width), nn.Embedding(NUM_VALUES, width)
        self.queries = nn.Embedding(NUM_KEYS, width)
        self.layer, self.classify = layer, nn.Linear(width, NUM_VALUES)

    def forward(self, keys: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Keys and values `[B, L]` of the text, asked keys `[B, T]`; logits `[B, T, NUM_VALUES]`."""
        text = self.keys(keys) + self.values(values)
        return self.classify(self.layer(self.queries(asked), text))


def make_layer(name: str, width: int, head_dim: int) -> nn.Module:
    if name == "softmax":
        return Attention(width, cross_attention_dim=width, heads=width // head_dim, dim_head=head_dim)
    fusion, _, without = name.partition(" without ")
    return CrossWKV(
        width,
        width,
        head_dim,
        fusion,
        feature_map="identity" if without else None,
        decay_rank=16,
        in_context_lr_rank=16,
        gate_rank=0 if fusion == "state" else 16,
        value_rank=16,
    )


def draw_facts(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Keys `[B, count]`, all different in a text, their values, asked keys `[B, QUERIES]` and the answers."""
    scores = torch.rand(batch_size, NUM_KEYS, generator=generator)
    keys = scores.argsort(dim=1)[:, :count]
    values = torch.randint(NUM_VALUES, (batch_size, count), generator=generator)
    places = torch.randint(count, (batch_size, QUERIES), generator=generator)
    return keys, values, keys.gather(1, places), values.gather(1, places)


def measure_recall(
    name: str,
    head_dim: int = 64,
    facts: tuple[int, ...] = (4, 8, 16, 32, 64, 96, 128),
    steps: int = 1500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> list[Recall]:
    """Train one layer with one head on texts of all these numbers of facts, and test it on each.

    Args:
        name: `softmax`, `state` or `prefix`; `state without feature map`.
        head_dim: K, and the layer's width.
    """
    torch.manual_seed(seed)
    model = Reader(make_layer(name, head_dim, head_dim), head_dim)
    generator = torch.Generator().manual_seed(seed)

    def loss_of_step(step: int) -> torch.Tensor:
        keys, values, asked, answers = draw_facts(facts[step % len(facts)], batch_size, generator)
        return F.cross_entropy(model(keys, values, asked).flatten(0, 1), answers.flatten())

    fit(model, loss_of_step, steps, 3e-3, f"recall, {name} {head_dim}", progress)
    return [
        Recall(name, head_dim, count, accuracy(model, count, seed), 1 / NUM_VALUES, steps, seed) for count in facts
    ]


@torch.no_grad()
def accuracy(model: Callable[..., torch.Tensor], count: int, seed: int, texts: int = 128) -> float:
    keys, values, asked, answers = draw_facts(count, texts, torch.Generator().manual_seed(seed + 1_000_000))
    return (model(keys, values, asked).argmax(-1) == answers).float().mean().item()


def as_row(recall: Recall) -> dict[str, object]:
    return {"kind": "recall"} | asdict(recall)
