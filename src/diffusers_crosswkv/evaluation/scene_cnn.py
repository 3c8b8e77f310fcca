"""A second reader of scenes, trained instead of programmed: it checks the judge, which it shares no step with.

It looks at one cell of the grid at a time and says what stands there: nothing, or a colour, a shape and a size.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

from ..data.scene_splits import EVERYTHING, Scenes
from ..data.scenes import COLOURS, SHAPES, SIZES, Scene, SceneObject
from .fitting import fit

NAMES = (("nothing", *COLOURS), SHAPES, SIZES)
CROP = 16  # pixels to which a cell is brought
MARGIN = 1  # of a cell's neighbours that is seen too


class SceneCNN(nn.Module):
    """Three convolutions and three classifiers, for crops `[N, 3, 16, 16]`; about 60,000 parameters."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
        )
        self.heads = nn.ModuleList(nn.Linear(2 * width * (CROP // 4) ** 2, len(names)) for names in NAMES)

    def forward(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """Logits of colour (the first is nothing), shape and size."""
        features = self.features(crops)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def read(self, images: torch.Tensor, grid: int) -> list[Scene]:
        """The scenes in pictures `[N, 3, resolution, resolution]`, -1 to 1."""
        colours, shapes, sizes = (x.argmax(1).view(len(images), -1) for x in self(cell_crops(images, grid)))
        return [
            Scene(
                tuple(
                    SceneObject(NAMES[0][colours[i, j]], SHAPES[shapes[i, j]], SIZES[sizes[i, j]], divmod(j, grid))
                    for j in range(grid * grid)
                    if colours[i, j] > 0
                ),
                grid,
            )
            for i in range(len(images))
        ]


def cell_crops(images: torch.Tensor, grid: int) -> torch.Tensor:
    """`[N * grid**2, 3, CROP, CROP]`: every cell with its margin, in reading order."""
    cell = images.shape[-1] // grid
    padded = F.pad(images, [MARGIN] * 4, mode="replicate")
    size = cell + 2 * MARGIN
    crops = padded.unfold(2, size, cell)[:, :, :grid].unfold(3, size, cell)[:, :, :, :grid]
    crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return F.interpolate(crops, (CROP, CROP), mode="bilinear", align_corners=False)


def targets_of(scene: Scene) -> torch.Tensor:
    """`[grid**2, 3]`: numbers of colour (0 is nothing), shape and size; -1 where there is nothing to say."""
    targets = torch.tensor([[0, -1, -1]]).repeat(scene.grid**2, 1)
    for x in scene.objects:
        numbers = [names.index(name) for names, name in zip(NAMES, (x.colour, x.shape, x.size), strict=True)]
        targets[x.cell[0] * scene.grid + x.cell[1]] = torch.tensor(numbers)
    return targets


def train_scene_cnn(resolution: int, steps: int = 800, batch_size: int = 32, seed: int = 0, progress=True) -> SceneCNN:
    """Fit the reader on renders, clean, blurred and noisy in turn."""
    torch.manual_seed(seed)
    model, scenes = SceneCNN(), Scenes(resolution, EVERYTHING, seed=seed + 2_000_000)
    rng = random.Random(seed)

    def loss_of_step(step: int) -> torch.Tensor:
        numbers = range(step * batch_size, (step + 1) * batch_size)
        images = torch.stack([scenes.image(i) for i in numbers])
        images = disturb(images, rng.choice((0, 0.4, 0.8)), rng.choice((0, 0.05, 0.15)), seed=step)
        targets = torch.cat([targets_of(scenes.scene(i)) for i in numbers])
        logits = model(cell_crops(images, scenes.grid))
        losses = [F.cross_entropy(x, targets[:, i], ignore_index=-1) for i, x in enumerate(logits)]
        return torch.stack(losses).sum()

    fit(model, loss_of_step, steps, 2e-3, "scene CNN", progress)
    return model


def disturb(images: torch.Tensor, blur: float, noise: float, seed: int = 0) -> torch.Tensor:
    """Gaussian blur of `blur` pixels, then Gaussian noise of `noise` (pictures span -1 to 1), standard deviations."""
    if blur > 0:
        places = torch.arange(-3, 4)
        kernel = torch.softmax(-(places**2) / (2 * blur**2), dim=0)
        kernel = (kernel[:, None] * kernel).expand(images.shape[1], 1, -1, -1)
        images = F.conv2d(F.pad(images, [3] * 4, mode="replicate"), kernel, groups=images.shape[1])
    generator = torch.Generator().manual_seed(seed)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
