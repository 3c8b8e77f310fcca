"""The text encoder that all arms read through: trained once, without any of their attentions, then frozen.

Trained along with each arm, what it started from decided more than the kind of attention. So it learns beforehand, as
those of large models do: to make of a caption what the scene behind it can be told from.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel

from ..data.scene_splits import TRAINING, Scenes
from ..data.scenes import GRIDS, Scene
from ..environment import best_device, environment
from ..evaluation.fitting import fit
from ..evaluation.kernel_rows import commit
from ..files import write_json
from ..models.text_windows import encode_texts
from ..pipelines.prompt_encoding import ENDOFTEXT
from ..training.text import make_text_encoder
from .arms import Preset, scene_tokenizer
from .grid_task import NAMES, classes_of_cells
from .runs import row_path

WEIGHTS = "weights"
HEAD_DIM = 16
QUERIES = 4  # per cell of the grid
LAYERS = 2  # of the reader
LEARNING_RATE = 3e-3
SCENES_SEED = 77  # no training and no evaluation of an arm has this one


class SigmoidReading(nn.Module):
    """Queries `[B, Q, D]` read text `[B, L, D]`: every token counts by a sigmoid of its own.

    Tokens do not compete, as they do under softmax, and do not overwrite each other, as they do in a state: the text
    encoder is made for neither.
    """

    def __init__(self, width: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.threshold = nn.Parameter(torch.full((width // HEAD_DIM, 1, 1), 2.0))

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for y in (self.to_q(x), self.to_k(text), self.to_v(text))
        )
        weights = torch.sigmoid(q @ k.mT / HEAD_DIM**0.5 - self.threshold) * mask[:, None, None].to(x.dtype)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class SceneReader(nn.Module):
    """Text to logits of colour, shape and size, `[B, cells, 1 + number of names]` each."""

    def __init__(self, width: int, cells: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(cells * QUERIES, width) * 0.5)
        self.readings = nn.ModuleList(SigmoidReading(width) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(LAYERS))
        self.sizes = [1 + len(names) for names in NAMES]
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))

    def forward(self, text: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.queries.expand(len(text), -1, -1)
        for norm, reading, mlp in zip(self.norms, self.readings, self.mlps, strict=True):
            x = x + reading(norm(x), text, mask)
            x = x + mlp(x)
        return self.classify(x.unflatten(1, (-1, QUERIES)).mean(2)).split(self.sizes, dim=-1)


def facts_of(scene: Scene) -> torch.Tensor:
    """Classes `[cells, 3]` of colour, shape and size; 0 is "nothing there"."""
    return classes_of_cells(scene.objects, scene.grid)


def untrained_text_encoder(preset: Preset) -> CLIPTextModel:
    torch.manual_seed(0)
    return make_text_encoder(scene_tokenizer(preset.window), preset.text_width, preset.text_layers)


def shared_text_encoder(preset: Preset, folder: Path, progress: bool = True) -> CLIPTextModel:
    """Load the text encoder of all arms from `folder`, where it is trained first if it is not there."""
    if not (folder / WEIGHTS).exists():
        train_text_encoder(preset, folder, progress)
    return CLIPTextModel.from_pretrained(folder / WEIGHTS)


def train_text_encoder(preset: Preset, folder: Path, progress: bool = True) -> None:
    """Captions like those of training to scenes; a caption that does not say all leaves the rest to chance.

    Leaves weights, written whole or not at all, and a row with the mean loss of the last tenth of the steps. It takes
    a part of an arm's time; interrupted, it starts again.
    """
    text_encoder, tokenizer = untrained_text_encoder(preset), scene_tokenizer(preset.window)
    reader = SceneReader(preset.text_width, GRIDS[preset.resolution] ** 2)
    device = best_device()
    both = nn.ModuleList([text_encoder, reader]).to(device)
    scenes, losses = Scenes(preset.resolution, TRAINING, seed=SCENES_SEED), []

    def loss_of_step(step: int) -> torch.Tensor:
        numbers = range(step * preset.batch_size, (step + 1) * preset.batch_size)
        captions = [ENDOFTEXT + scenes.description(i).text for i in numbers]
        facts = torch.stack([facts_of(scenes.scene(i)) for i in numbers]).to(device)
        logits = reader(*encode_texts(text_encoder, tokenizer, captions))
        of_facts = [F.cross_entropy(x.flatten(0, 1), facts[..., i].flatten()) for i, x in enumerate(logits)]
        loss = torch.stack(of_facts).sum()
        losses.append(loss.item())
        return loss

    start = time.perf_counter()
    fit(both, loss_of_step, preset.text_steps, LEARNING_RATE, "text encoder", progress)
    last = losses[-max(len(losses) // 10, 1) :]
    about = {
        "kind": "text encoder",
        "parameters": text_encoder.num_parameters(),
        "steps": preset.text_steps,
        "loss": round(sum(last) / len(last), 4),
        "seconds": round(time.perf_counter() - start, 1),
        **environment(device),
        "commit": commit(),
    }
    write_json(row_path(folder, "training"), about)
    with TemporaryDirectory(dir=folder) as unfinished:
        weights = Path(unfinished, WEIGHTS)
        text_encoder.cpu().save_pretrained(weights)
        try:
            weights.rename(folder / WEIGHTS)
        except OSError:
            if not (folder / WEIGHTS).exists():  # else another process was first, with equal weights
                raise
