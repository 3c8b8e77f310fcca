"""Reads a scene back from its picture: palette, connected components, templates."""

from functools import cache

import numpy as np
import torch
from scipy import ndimage

from ..data.scenes import COLOURS, SHAPES, SIZES, Scene, SceneObject, shape_mask

DETECTED = 0.4  # of a pixel covered by one colour: what makes a component
TRACE = 0.15  # what still counts as its edge
MARGIN = 2  # pixels around a component that are compared too
BLURS = (0.0, 0.5, 0.8, 1.1)  # of the templates, in pixels: drawn pictures are not always sharp
MIN_OVERLAP = 0.5  # of a component with its best template, intersection over union
NAMES = tuple(COLOURS)


def read_scene(image: torch.Tensor, grid: int) -> Scene:
    """The objects in a picture `[3, resolution, resolution]`, -1 to 1, on a grid of `grid` x `grid` cells.

    What resembles no template is left out, and of two things in one cell the larger one counts.
    """
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    cell = pixels.shape[0] // grid
    nearest, coverage = colour_coverage(pixels)
    smallest = templates(cell)[1].sum((1, 2)).min()
    found: dict[tuple[int, int], tuple[float, SceneObject]] = {}
    for colour in range(len(NAMES)):
        covered = np.where(nearest == colour, coverage, 0)
        components, count = ndimage.label(covered >= DETECTED, structure=np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(components, count), 1):
            own = np.where((components == number) | (components == 0), covered, 0)
            window = np.pad(own, MARGIN)[tuple(slice(side.start, side.stop + 2 * MARGIN) for side in box)]
            if window.sum() < MIN_OVERLAP * smallest:  # it cannot resemble any
                continue
            overlap, shape, size = best_template(window, cell)
            if overlap < MIN_OVERLAP:
                continue
            place = tuple(min((side.start + side.stop - 1) // 2 // cell, grid - 1) for side in box)
            area = float(window.sum())
            if area > found.get(place, (0.0, None))[0]:
                found[place] = (area, SceneObject(NAMES[colour], shape, size, place))
    return Scene(tuple(found[place][1] for place in sorted(found)), grid)


def colour_coverage(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[height, width]` each: the palette colour of the nearest hue, and how much of the pixel it covers, 0 to 1.

    Backgrounds are grey, so that a pixel which an edge runs through has the hue of its colour and less of its chroma.
    """
    hues, chromas = palette()
    lowest = pixels.min(-1)
    chroma = pixels.max(-1) - lowest
    hue = (pixels - lowest[..., None]) / np.maximum(chroma, 1)[..., None]
    nearest = np.square(hue[:, :, None] - hues).sum(-1).argmin(-1)
    coverage = np.minimum(chroma / chromas[nearest], 1)
    return nearest, np.where(coverage >= TRACE, coverage, 0)


@cache
def palette() -> tuple[np.ndarray, np.ndarray]:
    """Hue `[colours, 3]`, from 0 to 1 in the lowest and highest channel, and chroma `[colours]`, 0 to 255."""
    colours = np.array(list(COLOURS.values()), dtype=float)
    lowest = colours.min(-1, keepdims=True)
    chroma = colours.max(-1, keepdims=True) - lowest
    return (colours - lowest) / chroma, chroma[:, 0]


@cache
def templates(cell: int) -> tuple[tuple[tuple[str, str], ...], np.ndarray]:
    """Shape and size of all that can stand in a cell at every blur, and its coverage `[templates, n, n]`, centred."""
    names, pictures = [], []
    side = cell + 4 * MARGIN
    for shape in SHAPES:
        for size in SIZES:
            mask = shape_mask(shape, size, cell).astype(float)
            before = (side - mask.shape[0]) // 2
            padded = np.pad(mask, (before, side - mask.shape[0] - before))
            for blur in BLURS:
                names.append((shape, size))
                pictures.append(ndimage.gaussian_filter(padded, blur) if blur else padded)
    return tuple(names), np.stack(pictures)


def best_template(window: np.ndarray, cell: int) -> tuple[float, str, str]:
    """Intersection over union, shape and size of the template that a component resembles most."""
    names, pictures = templates(cell)
    side = max(pictures.shape[-1], *window.shape)
    before = (side - pictures.shape[-1]) // 2
    pictures = np.pad(pictures, ((0, 0), *[(before, side - pictures.shape[-1] - before)] * 2))
    placed = np.zeros((side, side))
    top, left = ((side - n) // 2 for n in window.shape)
    placed[top : top + window.shape[0], left : left + window.shape[1]] = window
    best = (0.0, 0)
    for down in range(-MARGIN, MARGIN + 1):
        for right in range(-MARGIN, MARGIN + 1):
            moved = np.roll(placed, (down, right), (0, 1))
            both = np.minimum(pictures, moved).sum((1, 2))
            overlap = both / (pictures.sum((1, 2)) + moved.sum() - both)
            best = max(best, (float(overlap.max()), int(overlap.argmax())))
    return best[0], *names[best[1]]
