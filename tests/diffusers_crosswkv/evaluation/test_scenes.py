import random
from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffusers_crosswkv.data.scenes import GRIDS, Scene, draw_scene, render
from diffusers_crosswkv.evaluation.scenes import read_scene


def share_read(resolution, damage=lambda image: image, count=150):
    """The share of pictures from which every object is read exactly."""
    rng = random.Random(resolution)
    grid = GRIDS[resolution]
    right = 0
    for _ in range(count):
        scene = draw_scene(rng, grid, rng.randint(1, min(5, grid**2)))
        right += read_scene(damage(render(scene, resolution, rng)), grid) == scene
    return right / count


@pytest.mark.parametrize("resolution", GRIDS)
def test_pictures_are_read_exactly(resolution):
    assert share_read(resolution) >= 0.995


@pytest.mark.parametrize("resolution", GRIDS)
def test_noise_and_blur(resolution):
    assert share_read(resolution, lambda image: image + torch.randn_like(image) * 0.08) >= 0.98
    assert share_read(resolution, lambda image: torch.from_numpy(gaussian_filter(image, (0, 0.8, 0.8)))) >= 0.85
    assert share_read(resolution, lambda image: torch.from_numpy(gaussian_filter(image, (0, 0.6, 0.6)))) >= 0.98


def test_nothing_is_seen_where_nothing_is():
    rng = random.Random(0)
    assert all(read_scene(render(Scene((), 3), 32, rng), 3).objects == () for _ in range(20))
    assert read_scene(torch.zeros(3, 32, 32), 3).objects == ()


def test_a_changed_picture_is_read_as_changed():
    rng = random.Random(0)
    for _ in range(20):
        scene = draw_scene(rng, 3, 3)
        image = render(scene, 32, rng)
        swapped = read_scene(image[[1, 0, 2]], 3)  # red becomes green: another colour, the same places and shapes
        for before, after in zip(scene.objects, swapped.objects, strict=True):
            names = {"red": "green", "green": "red", "magenta": "cyan", "cyan": "magenta"}
            assert after == replace(before, colour=names.get(before.colour, before.colour))
