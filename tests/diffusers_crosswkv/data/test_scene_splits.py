import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusers_crosswkv.data.scene_splits import (
    FRENCH_HELD_OUT,
    HELD_OUT_PAIRS,
    SPLITS,
    TRAINING,
    Scenes,
    Split,
    export_image_folder,
)
from diffusers_crosswkv.evaluation.scenes import read_scene


def pairs_of(scene):
    return {(x.colour, x.shape) for x in scene.objects}


@given(st.integers(0, 99_999), st.sampled_from((32, 64)))
def test_scene_picture_and_caption_belong_together(index, resolution):
    scenes = Scenes(resolution)
    assert read_scene(scenes.image(index), scenes.grid) == scenes.scene(index)
    description = scenes.description(index)
    assert {(m.colour, m.shape) for m in description.mentions} == pairs_of(scenes.scene(index))
    assert torch.equal(scenes.image(index), Scenes(resolution).image(index))
    assert scenes.description(index) == Scenes(resolution).description(index)


def test_seeds_differ_and_captions_can_be_drawn_anew():
    assert [Scenes(32).scene(i) for i in range(9)] != [Scenes(32, seed=1).scene(i) for i in range(9)]
    rng = random.Random(0)
    assert len({Scenes(32).caption(3, rng) for _ in range(20)}) > 10
    assert len(Scenes(32, size=7)) == 7


def test_training_leaves_the_pairs_out():
    scenes = Scenes(32, TRAINING)
    for i in range(600):
        pairs = pairs_of(scenes.scene(i))
        assert not pairs & HELD_OUT_PAIRS
        if scenes.description(i).language == "French":
            assert not pairs & FRENCH_HELD_OUT
    others = {
        pair for i in range(600) if scenes.description(i).language != "French" for pair in pairs_of(scenes.scene(i))
    }
    assert others >= FRENCH_HELD_OUT


def test_held_out_words_are_all_trained_on_in_other_pairs():
    for held_out in (HELD_OUT_PAIRS, FRENCH_HELD_OUT):
        assert len({shape for _, shape in held_out}) == len(held_out) == 4  # one per shape: no shape is scarce
        assert max(sum(colour == c for c, _ in held_out) for colour, _ in held_out) == 1
    assert not HELD_OUT_PAIRS & FRENCH_HELD_OUT


@pytest.mark.parametrize("name", SPLITS)
def test_what_the_splits_ask(name):
    scenes = Scenes(32, SPLITS[name])
    found = [(scenes.scene(i), scenes.description(i)) for i in range(60)]
    assert {len(scene.objects) for scene, _ in found} == set(SPLITS[name].num_objects)
    for scene, description in found:
        if name == "pairs":
            assert pairs_of(scene) & HELD_OUT_PAIRS
        if name == "language":
            assert pairs_of(scene) & FRENCH_HELD_OUT
            assert description.language == "French"
        if name in ("long", "very long"):
            assert description.length == name
    if name == "same":
        assert {description.length for _, description in found} == {"short", "medium"}
        assert {description.language for _, description in found} == {"English", "Chinese", "Spanish", "French"}


def test_export(tmp_path):
    folder = tmp_path / "pictures"
    scenes = Scenes(32)
    export_image_folder(scenes, folder, 3)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == ["000000.png", "000001.png", "000002.png"]
    for i, row in enumerate(rows):
        assert row["text"] == scenes.description(i).text
        assert [x["colour"] for x in row["objects"]] == [x.colour for x in scenes.scene(i).objects]
        with Image.open(folder / row["file_name"]) as picture:
            assert picture.size == (32, 32)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        assert read_scene(pixels, scenes.grid) == scenes.scene(i)
    with pytest.raises(FileExistsError, match="new or empty"):
        export_image_folder(scenes, folder, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        export_image_folder(scenes, tmp_path / "none", 0)


def test_bad_data_sets():
    with pytest.raises(ValueError, match="must be one of 16, 32, 64, got 48"):
        Scenes(48)
    with pytest.raises(ValueError, match="between 1 and 4, the number of cells at 16 pixels"):
        Scenes(16, Split(num_objects=(5,)))
    with pytest.raises(ValueError, match="`languages` must hold another one beside French"):
        Scenes(32, Split(languages=("French",)))
    with pytest.raises(ValueError, match="between 1 and 9"):
        Scenes(32, Split(num_objects=(0, 1)))


def test_small_pictures_have_fewer_objects():
    scenes = Scenes(16, SPLITS["objects"])
    assert {len(scenes.scene(i).objects) for i in range(30)} == {4}
