import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.scenes import COLOURS, GRIDS, SHAPES, SIZES, Scene, SceneObject, draw_scene, render


@given(st.integers(0, 10_000), st.sampled_from(sorted(GRIDS)))
def test_a_seed_gives_one_picture(seed, resolution):
    def draw():
        rng = random.Random(seed)
        scene = draw_scene(rng, GRIDS[resolution], rng.randint(1, 4))
        return scene, render(scene, resolution, rng)

    (scene, image), (again, same_image) = draw(), draw()
    assert scene == again
    assert torch.equal(image, same_image)
    assert image.shape == (3, resolution, resolution)
    assert ((image >= -1) & (image <= 1)).all()


def test_everything_is_drawn_and_backgrounds_vary():
    rng = random.Random(0)
    scenes = [draw_scene(rng, 3, 3) for _ in range(200)]
    objects = [scene_object for scene in scenes for scene_object in scene.objects]
    assert {(o.colour, o.shape, o.size) for o in objects} == {
        (colour, shape, size) for colour in COLOURS for shape in SHAPES for size in SIZES
    }
    empty = Scene((), 3)
    levels = torch.stack([render(empty, 32, rng).mean() for _ in range(50)])
    assert levels.std() > 0.1


def test_pairs_can_be_held_out():
    rng = random.Random(0)
    scenes = [
        draw_scene(rng, 2, 4, allowed=lambda colour, shape: (colour, shape) != ("red", "ring")) for _ in range(99)
    ]
    assert not any((o.colour, o.shape) == ("red", "ring") for scene in scenes for o in scene.objects)


def test_bad_scenes():
    red = SceneObject("red", "ring", "small", (0, 0))
    with pytest.raises(ValueError, match=r"different cells inside a 2 x 2 grid, got \[\(0, 0\), \(0, 0\)\]"):
        Scene((red, red), 2)
    with pytest.raises(ValueError, match="inside a 2 x 2 grid"):
        Scene((SceneObject("red", "ring", "small", (0, 2)),), 2)
    with pytest.raises(ValueError, match=r"16 \(grid 2\), 32 \(grid 3\), 64 \(grid 4\), got 48 for a scene of grid 2"):
        render(Scene((red,), 2), 48, random.Random(0))
