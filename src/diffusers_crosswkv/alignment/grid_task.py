"""From captions straight to a grid of facts, without diffusion: how well a layer reads, learned in a minute or two.

Sixteen positions with learned embeddings, four per cell of a 2 x 2 grid, read a caption through a few layers of
cross-attention; a classifier says of each cell which colour, shape and size the caption names for it.
"""

import dataclasses
import random
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn

from ..data.captions import PLACES, Description, Mention
from ..data.scene_splits import SPLITS, Scenes, Split
from ..data.scenes import COLOURS, SHAPES, SIZES, SceneObject
from ..evaluation.fitting import fit
from ..models import CrossWKV
from ..models.text_windows import encode_texts
from ..pipelines.prompt_encoding import ENDOFTEXT
from ..training.text import make_text_encoder
from .arms import STATE, scene_tokenizer

NAMES = (tuple(COLOURS), SHAPES, SIZES)  # class 0 is "not said", of the colour too: then nothing is asked for
WIDTH, TEXT_WIDTH, HEADS, WINDOW = 48, 64, 4, 20
EVALUATION_SEED = 2_000_000


class ReadingLayer(nn.Module):
    """Cross-attention and an MLP, each on a normalised residual stream."""

    def __init__(self, cross_attention: nn.Module):
        super().__init__()
        self.cross_attention = cross_attention
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if isinstance(self.cross_attention, Attention):
            bias = (1 - mask.to(x.dtype))[:, None] * -10_000.0
            x = x + self.cross_attention(self.norms[0](x), encoder_hidden_states=text, attention_mask=bias)
        else:
            x = x + self.cross_attention(self.norms[0](x), text, mask)
        return x + self.mlp(self.norms[1](x))


class GridReader(nn.Module):
    """Captions to logits of colour, shape and size, `[B, 4, 1 + number of names]` each."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.tokenizer = scene_tokenizer(WINDOW)
        self.text_encoder = make_text_encoder(self.tokenizer, TEXT_WIDTH, num_layers=2)
        self.positions = nn.Parameter(torch.randn(4, 4, WIDTH) * 0.5)
        self.layers = nn.ModuleList(ReadingLayer(layer) for layer in layers)
        self.classify = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(1 + len(names) for names in NAMES)))

    def forward(self, captions: list[str]) -> tuple[torch.Tensor, ...]:
        text, mask = encode_texts(self.text_encoder, self.tokenizer, [ENDOFTEXT + caption for caption in captions])
        x = self.positions.flatten(0, 1).expand(len(captions), -1, -1)
        for layer in self.layers:
            x = layer(x, text, mask)
        cells = x.unflatten(1, (4, 4)).mean(2)
        return self.classify(cells).split([1 + len(names) for names in NAMES], dim=-1)


def make_layers(name: str, count: int = 3, **options) -> list[nn.Module]:
    """`softmax`, `state` or `prefix`; `options` are those of `CrossWKV`."""
    if name == "softmax":
        return [Attention(WIDTH, TEXT_WIDTH, heads=HEADS, dim_head=WIDTH // HEADS) for _ in range(count)]
    ranks = dict.fromkeys(("decay_rank", "in_context_lr_rank", "gate_rank", "value_rank"), 8)
    settings = {"head_dim": 16} | ranks | (STATE if name == "state" else {}) | options
    return [
        CrossWKV(WIDTH, TEXT_WIDTH, fusion=name, layer_index=i, num_layers=count, **settings) for i in range(count)
    ]


def captions_with_cells(split: Split, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Captions that say where every object is, and their targets `[4, 3]`."""
    scenes, index = Scenes(16, split, seed=seed), 0
    while True:
        description = scenes.description(index)
        if description.mentions[0].cell is not None:
            yield description.text, targets_of(description)
        index += 1


def targets_of(description: Description) -> torch.Tensor:
    return classes_of_cells(description.mentions, grid=2)


def classes_of_cells(objects: Iterable[Mention | SceneObject], grid: int) -> torch.Tensor:
    """Classes `[cells, 3]` of colour, shape and size, in reading order of the cells; 0 where there is none to name."""
    classes = torch.zeros(grid**2, len(NAMES), dtype=torch.long)
    for x in objects:
        assert x.cell is not None
        found = (x.colour, x.shape, x.size)
        numbers = [0 if name is None else 1 + names.index(name) for names, name in zip(NAMES, found, strict=True)]
        classes[x.cell[0] * grid + x.cell[1]] = torch.tensor(numbers)
    return classes


def measure_reading(
    layers: list[nn.Module], steps: int = 600, batch_size: int = 64, seed: int = 0, count: int = 300, progress=True
) -> dict[str, float]:
    """Train a reader, and the share of objects read right on captions like those of training and on longer ones."""
    torch.manual_seed(seed)
    reader = GridReader(layers)
    stream = captions_with_cells(SPLITS["same"], seed)
    seen = [next(stream) for _ in range(min(12_000, steps * batch_size))]
    rng = random.Random(seed)

    def loss_of_step(step: int) -> torch.Tensor:
        captions, targets = zip(*rng.sample(seen, batch_size), strict=True)
        logits, wanted = reader(list(captions)), torch.stack(targets)
        losses = [F.cross_entropy(x.flatten(0, 1), wanted[..., i].flatten()) for i, x in enumerate(logits)]
        return torch.stack(losses).sum()

    fit(reader, loss_of_step, steps, 3e-3, "captions to grid", progress)
    splits = {"same": SPLITS["same"]} | {
        f"{length}, {place}": dataclasses.replace(SPLITS[length], place=place)
        for length in ("long", "very long")
        for place in PLACES
    }
    return {name: share_right(reader, split, count) for name, split in splits.items()}


@torch.no_grad()
def share_right(reader: GridReader, split: Split, count: int, batch_size: int = 64) -> float:
    """Of the objects that captions name: all of colour, shape and size right."""
    stream = captions_with_cells(split, EVALUATION_SEED)
    right: list[float] = []
    for start in range(0, count, batch_size):
        captions, targets = zip(*(next(stream) for _ in range(min(batch_size, count - start))), strict=True)
        wanted, logits = torch.stack(targets), reader(list(captions))
        agree = torch.stack([x.argmax(-1) == wanted[..., i] for i, x in enumerate(logits)], -1).all(-1)
        right += agree[wanted[..., 0] > 0].float().tolist()
    return sum(right) / len(right)
