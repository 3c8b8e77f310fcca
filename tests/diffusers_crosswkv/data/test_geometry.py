import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_image
from PIL import Image

from diffusers_crosswkv.data.examples import BrokenImage
from diffusers_crosswkv.data.geometry import INTERPOLATIONS, Geometry, cover
from diffusers_crosswkv.data.records import Record, Wordings, open_file

LANCZOS = Image.Resampling.LANCZOS


def make_record(path, texts=("a",)):
    return Record(path.name, "id", Wordings(texts), partial(open_file, path))


def ramps(height, width):
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    red, green = (np.round(255 * part).astype(np.uint8) for part in (x / (width - 1), y / (height - 1)))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], axis=-1))


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_any_image_fits_any_size(source, size, data):
    place = data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))
    image = Image.new("RGB", source, (9, 99, 199))
    found = np.asarray(cover(image, size, place, LANCZOS))
    assert found.shape == (*size, 3)
    assert (found == (9, 99, 199)).all()


def test_the_place_of_the_crop():
    wide = ramps(20, 60)
    left, middle, right = (np.asarray(cover(wide, (20, 20), (x, 0.5), LANCZOS)).astype(int) for x in (0, 0.5, 1))
    assert (left == np.asarray(wide)[:, :20]).all()
    assert (middle == np.asarray(wide)[:, 20:40]).all()
    assert (right == np.asarray(wide)[:, 40:]).all()


def test_shrinking_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    for name in ("lanczos", "bicubic", "bilinear", "box"):
        found = np.asarray(cover(stripes, (16, 16), (0.5, 0.5), INTERPOLATIONS[name])).astype(int)
        assert np.abs(found[:, 2:-2] - 127.5).max() < 12
    nearest = np.asarray(cover(stripes, (16, 16), (0.5, 0.5), INTERPOLATIONS["nearest"]))
    assert set(nearest.ravel()) <= {0, 255}


def test_pixels_have_the_range_and_shape_that_is_promised(tmp_path):
    path = tmp_path / "a.png"
    ramps(30, 50).save(path)
    colour, grey = (Geometry("center", False, "lanczos", channels) for channels in (3, 1))
    pixels = colour.make_fixed_example(make_record(path), (30, 50)).pixels()
    assert pixels.shape == (3, 30, 50)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(pixels[2], torch.full((30, 50), -1.0))
    assert grey.make_fixed_example(make_record(path), (16, 24)).pixels().shape == (1, 16, 24)


def test_draws_are_functions_of_the_generator_and_part_of_the_identity(tmp_path):
    path = write_image(tmp_path / "a.png", 30, 60)
    record = make_record(path, ("one", "two", "three"))
    geometry = Geometry("random", True, "lanczos", 3)
    examples = [geometry.make_example(record, (16, 16), random.Random(seed)) for seed in range(12)]
    again = [geometry.make_example(record, (16, 16), random.Random(seed)) for seed in range(12)]
    assert examples[3].identity == again[3].identity
    assert torch.equal(examples[3].pixels(), again[3].pixels())
    assert {x.caption for x in examples} == {"one", "two", "three"}
    assert len({x.identity for x in examples}) == 12
    assert len({tuple(x.pixels().ravel().tolist()) for x in examples}) == 12


def test_what_changes_pixels_changes_the_identity(tmp_path):
    record = make_record(write_image(tmp_path / "a.png"))
    made = [
        Geometry("center", False, interpolation, channels).make_example(record, size, random.Random(0)).identity
        for interpolation in ("lanczos", "bicubic")
        for channels in (1, 3)
        for size in ((8, 16), (16, 8))
    ]
    flips = {Geometry("center", True, "lanczos", 3).make_example(record, (8, 8), random.Random(i)) for i in range(9)}
    assert len(set(made)) == 8
    assert len({x.identity for x in flips}) == 2
    one, other = {x.identity: x.pixels() for x in flips}.values()
    assert torch.equal(one, other.flip(-1))


def test_a_fixed_example_draws_nothing(tmp_path):
    record = make_record(write_image(tmp_path / "a.png", 30, 60), ("one", "two"))
    examples = [
        Geometry(*x, "lanczos", 3).make_fixed_example(record, (8, 8)) for x in (("random", True), ("center", False))
    ]
    assert examples[0].identity == examples[1].identity
    assert examples[0].caption == examples[1].caption


def test_a_file_that_vanished_is_a_broken_image(tmp_path):
    example = Geometry("center", False, "lanczos", 3).make_example(
        make_record(tmp_path / "gone.png"), (8, 8), random.Random(0)
    )
    with pytest.raises(BrokenImage, match="No such file"):
        example.pixels()
