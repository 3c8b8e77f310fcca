"""Pictures of coloured shapes on a grid, rendered on the fly: an endless data set whose every fact is known.

Objects never touch and backgrounds are grey, so that a picture can be read back exactly (`evaluation.scenes`).
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 40),
    "magenta": (215, 50, 215),
    "cyan": (40, 205, 215),
}
SHAPES = ("ring", "square", "triangle", "cross")  # far apart even in five pixels
SIZES = ("small", "large")
GRIDS = {16: 2, 32: 3, 64: 4}  # resolution -> cells per side
BRIGHTNESS_JITTER = 0.08
BACKGROUND_RANGE = (60, 190)
TEXTURE = 10  # grey levels by which a background varies from place to place


@dataclass(frozen=True)
class SceneObject:
    """One shape: names from `COLOURS`, `SHAPES` and `SIZES`, and its cell as (row, column) from the upper left."""

    colour: str
    shape: str
    size: str
    cell: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """Objects in different cells of a square grid, in reading order."""

    objects: tuple[SceneObject, ...]
    grid: int

    def __post_init__(self):
        cells = [scene_object.cell for scene_object in self.objects]
        if len(set(cells)) < len(cells) or any(not 0 <= x < self.grid for cell in cells for x in cell):
            raise ValueError(
                f"Objects must have different cells inside a {self.grid} x {self.grid} grid, got {cells}."
            )


def draw_scene(rng: random.Random, grid: int, num_objects: int, allowed=lambda colour, shape: True) -> Scene:
    """A random scene; `allowed(colour, shape)` leaves pairs out (for splits that hold pairs out)."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES if allowed(colour, shape)]
    cells = sorted(rng.sample([(row, column) for row in range(grid) for column in range(grid)], num_objects))
    return Scene(tuple(SceneObject(*rng.choice(pairs), rng.choice(SIZES), cell) for cell in cells), grid)


def render(scene: Scene, resolution: int, rng: random.Random) -> torch.Tensor:
    """`[3, resolution, resolution]` in [-1, 1]; `rng` draws background, brightness and the place within each cell.

    Raises:
        ValueError: the resolution is not one of `GRIDS`, or has another grid.
    """
    if GRIDS.get(resolution) != scene.grid:
        raise ValueError(
            f"`resolution` must be one of {', '.join(f'{r} (grid {g})' for r, g in GRIDS.items())}, "
            f"got {resolution} for a scene of grid {scene.grid}."
        )
    picture = background(resolution, rng)
    cell = resolution // scene.grid
    for scene_object in scene.objects:
        mask = shape_mask(scene_object.shape, scene_object.size, cell)
        slack = cell - 1 - mask.shape[0]  # one pixel stays free between cells
        jitter = min(slack, cell // 8)
        top, left = (index * cell + (slack - jitter) // 2 + rng.randint(0, jitter) for index in scene_object.cell)
        brightness = 1 + rng.uniform(-BRIGHTNESS_JITTER, BRIGHTNESS_JITTER)
        colour = np.clip(np.array(COLOURS[scene_object.colour]) * brightness, 0, 255)
        region = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
        region[mask] = colour
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """`[..., 3, height, width]` in [-1, 1] to bytes `[..., height, width, 3]`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).numpy()


def background(resolution: int, rng: random.Random) -> np.ndarray:
    """`[resolution, resolution, 3]`, 0 to 255: a grey level, a slope across the picture and grain."""
    noise = np.random.default_rng(rng.getrandbits(32))
    level = rng.uniform(*BACKGROUND_RANGE)
    slope = np.add.outer(*(rng.uniform(-TEXTURE, TEXTURE) * np.linspace(-1, 1, resolution) for _ in range(2)))
    grey = level + slope + noise.uniform(-TEXTURE / 2, TEXTURE / 2, (resolution, resolution))
    return np.repeat(np.clip(grey, 0, 255)[:, :, None], 3, axis=2)


@cache
def shape_mask(shape: str, size: str, cell: int) -> np.ndarray:
    """Boolean `[n, n]`: the pixels of a shape in its bounding box; n is nearly the cell, or half of it."""
    n = {"large": max(cell - 2, 7), "small": max(cell // 2, 5)}[size]
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    half = n / 2
    if shape == "ring":
        radius = np.hypot(x, y)
        return (radius <= half) & (radius >= 0.3 * n)
    if shape == "square":
        return np.ones((n, n), dtype=bool)
    if shape == "triangle":
        return np.abs(x) <= (y + half) / 2
    return np.minimum(np.abs(x), np.abs(y)) <= max(n / 6, 0.5)  # cross
