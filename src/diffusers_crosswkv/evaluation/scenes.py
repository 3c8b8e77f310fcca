"""Reads a scene back from its picture: palette, connected components, templates."""

from functools import cache

import numpy as np
import torch
from scipy import ndimage

from ..data.scenes import COLOURS, SHAPES, SIZES, Scene, SceneObject, shape_mask

MIN_CHROMA = 75  # grey backgrounds have none, the palette at least 138
MIN_OVERLAP = 0.5  # of a component with its best template, intersection over union
NAMES = tuple(COLOURS)


def read_scene(image: torch.Tensor, grid: int) -> Scene:
    """The objects in a picture `[3, resolution, resolution]`, -1 to 1, on a grid of `grid` x `grid` cells.

    What resembles no template is left out, and of two things in one cell the larger one counts.
    """
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    cell = pixels.shape[0] // grid
    labels = colour_labels(pixels)
    found: dict[tuple[int, int], tuple[int, SceneObject]] = {}
    for colour in range(len(NAMES)):
        components, count = ndimage.label(labels == colour, structure=np.ones((3, 3)))
        boxes = ndimage.find_objects(components)
        for number in range(1, count + 1):
            rows, columns = boxes[number - 1]
            mask = components[rows, columns] == number
            overlap, shape, size = best_template(mask, cell)
            if overlap < MIN_OVERLAP:
                continue
            place = tuple(min((box.start + box.stop - 1) // 2 // cell, grid - 1) for box in (rows, columns))
            area = int(mask.sum())
            if area > found.get(place, (0, None))[0]:
                found[place] = (area, SceneObject(NAMES[colour], shape, size, place))
    return Scene(tuple(found[place][1] for place in sorted(found)), grid)


def colour_labels(pixels: np.ndarray) -> np.ndarray:
    """`[height, width]`: the number of the palette colour of the nearest hue, -1 where there is no colour."""
    lowest, highest = pixels.min(-1), pixels.max(-1)
    chroma = highest - lowest
    hue = (pixels - lowest[..., None]) / np.maximum(chroma, 1)[..., None]
    distances = np.square(hue[:, :, None] - palette_hues()).sum(-1)
    return np.where(chroma >= MIN_CHROMA, distances.argmin(-1), -1)


@cache
def palette_hues() -> np.ndarray:
    palette = np.array(list(COLOURS.values()), dtype=float)
    lowest = palette.min(-1, keepdims=True)
    return (palette - lowest) / (palette.max(-1, keepdims=True) - lowest)


@cache
def templates(cell: int) -> tuple[tuple[str, str, np.ndarray], ...]:
    """Shape, size and mask, cut to its bounding box, of everything that can stand in a cell."""
    masks = ((shape, size, shape_mask(shape, size, cell)) for shape in SHAPES for size in SIZES)
    return tuple((shape, size, mask[ndimage.find_objects(mask.astype(int))[0]]) for shape, size, mask in masks)


def best_template(mask: np.ndarray, cell: int) -> tuple[float, str, str]:
    """Intersection over union, shape and size of the template that a component resembles most."""
    return max((overlap(mask, template), shape, size) for shape, size, template in templates(cell))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union at the best of the places where the smaller box lies in, or around, the larger one."""
    height, width = (max(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    padded = np.pad(a, ((0, height - a.shape[0]), (0, width - a.shape[1])))
    best = 0
    for top in range(height - b.shape[0] + 1):
        for left in range(width - b.shape[1] + 1):
            best = max(best, int(padded[top : top + b.shape[0], left : left + b.shape[1]][b].sum()))
    return best / (int(a.sum()) + int(b.sum()) - best)
