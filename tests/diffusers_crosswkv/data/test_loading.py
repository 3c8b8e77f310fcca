import collections

import pytest
import torch
from pictures import write_image

from diffusers_crosswkv.data import size_index
from diffusers_crosswkv.data.config import DataConfig
from diffusers_crosswkv.data.examples import BrokenImage
from diffusers_crosswkv.data.loading import open_data

SHAPES = ((40, 60), (60, 40), (48, 48), (30, 90), (90, 30))


@pytest.fixture
def folder(tmp_path):
    """23 images of five shapes, one after the other."""
    for i in range(23):
        write_image(tmp_path / f"images/{i:02d}.png", *SHAPES[i % 5], seed=i, caption=f"caption {i}")
    return tmp_path / "images"


def open_(data, batch_size=4, seed=0, channels=3, multiple=8, **options):
    """With a cache beside the data."""
    config = DataConfig(str(data), **{"resolution": 32, "cache_dir": f"{data}.cache", **options})
    return open_data(config, batch_size, seed, channels, multiple, progress=False)


def batch(source, step, size=4):
    return [source.example(step, slot) for slot in range(size)]


def assert_same(one, other):
    assert (one.name, one.caption, one.identity, one.size) == (other.name, other.caption, other.identity, other.size)
    assert torch.equal(one.pixels(), other.pixels())


@pytest.mark.parametrize("buckets", [False, True])
def test_every_image_once_in_an_epoch_and_one_size_in_a_batch(folder, buckets):
    source = open_(folder, buckets=buckets)
    assert source.examples_per_epoch == 23
    blocks = [batch(source, step) for step in range(5 * 23)]  # a block is 5 steps: 20 epochs, 23 blocks
    assert all(len({example.size for example in examples}) == 1 for examples in blocks)
    counts = collections.Counter(example.name for examples in blocks for example in examples)
    assert set(counts.values()) == {20}
    first = [example.name for examples in blocks[:5] for example in examples]
    assert len(set(first)) == 20
    sizes = {examples[0].size for examples in blocks}
    assert sizes == ({(24, 40), (32, 32), (40, 24)} if buckets else {(32, 32)})


def test_examples_are_functions_of_seed_step_and_slot(folder):
    options = {"buckets": True, "crop": "random", "flip": True}
    straight = [batch(open_(folder, **options), step) for step in range(12)]
    resumed = open_(folder, **options)
    resumed.load_state_dict(open_(folder, **options).state_dict(7))
    for step in (7, 8, 11):
        for slot in (3, 1):  # the slots of one of several processes
            assert_same(resumed.example(step, slot), straight[step][slot])
    assert [x.identity for x in batch(open_(folder, seed=1, **options), 0)] != [x.identity for x in straight[0]]


def test_a_run_that_goes_on_must_find_the_same_images(folder):
    state = open_(folder).state_dict(3)
    write_image(folder / "99.png", caption="new")
    with pytest.raises(ValueError, match="there were 23 and now there are 24"):
        open_(folder).load_state_dict(state)
    state = open_(folder, max_examples=7).state_dict(3)
    with pytest.raises(
        ValueError, match=r"`--validation_examples`\) and `max_examples`, which choose .*, as they were"
    ):
        open_(folder, max_examples=6).load_state_dict(state)


def test_broken_images_give_way_to_others_of_the_same_size(folder):
    for name in ("00", "07"):
        path = folder / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-300])  # the header is whole
    (folder / "05.png").write_bytes(b"no image")
    source = open_(folder, buckets=True)
    assert source.findings() == [("05.png", "cannot be read: no image of a kind that Pillow knows")]
    broken = set()
    for step in range(10):
        for slot in range(4):
            example = source.example(step, slot)
            try:
                assert example.pixels().shape == (3, *example.size)
            except BrokenImage:
                broken.add(example.name)
                others = [source.example(step, slot, attempt) for attempt in range(1, 6)]
                assert {other.size for other in others} == {example.size}
                assert example.name not in {other.name for other in others}
                assert len({other.name for other in others}) > 1
                assert source.example(step, slot, 2).identity == others[1].identity
    assert broken == {"00.png", "07.png"}


def test_small_images_are_used_and_remarked(folder):
    source = open_(folder, resolution=64)
    assert len(source.remarks) == 23 and not source.findings()
    assert dict(source.remarks)["00.png"] == "has 60 x 40 pixels and is enlarged to 64 x 64"
    assert source.example(0, 0).pixels().shape == (3, 64, 64)


def test_the_holdout_is_never_trained_on(folder):
    source = open_(folder, holdout_examples=5, buckets=True, flip=True, crop="random")
    held = {example.name for example in source.holdout}
    assert len(held) == 5 and source.examples_per_epoch == 18
    assert [example.size for example in source.holdout] == sorted(example.size for example in source.holdout)
    assert held.isdisjoint(example.name for step in range(18) for example in batch(source, step))
    again = open_(folder, holdout_examples=5, buckets=True)
    assert [x.identity for x in again.holdout] == [x.identity for x in source.holdout]
    assert {x.name for x in open_(folder, seed=1, holdout_examples=5).holdout} != held
    write_image(folder / "99.png", caption="one more")
    assert len({x.name for x in open_(folder, holdout_examples=5, buckets=True).holdout} & held) >= 4


def test_at_most_so_many_examples(folder):
    source = open_(folder, max_examples=6, holdout_examples=2)
    names = {example.name for step in range(6) for example in batch(source, step, 4)}
    assert len(names) == source.examples_per_epoch == 6
    assert names.isdisjoint(x.name for x in source.holdout)


def test_sizes_are_read_once(folder, monkeypatch):
    read = []
    original = size_index.size_or_reason
    monkeypatch.setattr(size_index, "size_or_reason", lambda records, i: read.append(i) or original(records, i))
    open_(folder)
    assert len(read) == 23
    open_(folder)
    assert len(read) == 23
    write_image(folder / "03.png", 50, 50, seed=99)
    source = open_(folder, buckets=True)
    assert len(read) == 24
    assert source.images_per_bucket() == {(40, 24): 9, (32, 32): 6, (24, 40): 8}
    for path in (folder.parent / "images.cache/sizes").iterdir():
        path.write_text('{"damaged": 1}')
    assert open_(folder, buckets=True).images_per_bucket() == source.images_per_bucket()


def test_an_epoch_smaller_than_a_batch(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"images/{i}.png", *SHAPES[i], seed=i, caption="x")
    source = open_(tmp_path / "images", batch_size=8, buckets=True)
    names = collections.Counter(x.name for step in range(3) for x in batch(source, step, 8))
    assert set(names.values()) == {8}
    alone = open_(tmp_path / "images", batch_size=1, max_examples=1)
    assert alone.example(0, 0).name == alone.example(5, 0, attempt=3).name


def test_one_channel(folder):
    assert open_(folder, channels=1).example(0, 0).pixels().shape == (1, 32, 32)


def test_built_in_data_sets():
    digits = open_data(DataConfig("digits", holdout_examples=7), 4, channels=1, multiple=4)
    assert digits.examples_per_epoch == 1790 and len(digits.holdout) == 7
    example = digits.example(0, 0)
    assert example.size == (8, 8) and example.caption
    assert set((example.pixels() * 8).round().ravel().tolist()) <= set(range(-8, 9))
    scenes = open_data(DataConfig("scenes:16"), 2)
    assert scenes.example(0, 1).pixels().shape == (3, 16, 16)
    assert scenes.example(0, 1).caption != scenes.example(0, 1, attempt=1).caption
    assert open_data(DataConfig("scenes", resolution=64), 2).example(0, 0).pixels().shape == (3, 64, 64)
    assert open_data(DataConfig("scenes:16", captions="none"), 2).example(0, 0).caption == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 36}, "`resolution` must be a multiple of 8 for this model, got 36; use 32 or 40"),
        ({"resolution": 4}, "got 4; use 8"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"channels": 4}, "`channels` must be 1 or 3, got 4"),
        ({"crop": "middle"}, "`crop` must be one of center, random, got 'middle'"),
        ({"captions": "clip"}, "`captions` must be one of text, none, .*, got 'clip'"),
        ({"interpolation": "best"}, "`interpolation` must be one of lanczos, "),
        ({"max_aspect_ratio": 0.5}, "`max_aspect_ratio` must be at least 1"),
        ({"holdout_examples": -1}, "`holdout_examples` must be at least 0"),
        ({"max_examples": 0}, "`max_examples` must be at least 1"),
        ({"max_examples": 5, "streaming": True}, "`max_examples` must be None with `streaming`"),
        ({"streaming": True}, "is a folder of images"),
        ({"split": "test"}, "`split` must be left out for"),
        ({"image_column": "img"}, "`image_column` must be left out for"),
        ({"revision": "main"}, "`revision` must be left out for"),
        ({"holdout_examples": 23}, r"none is left: `holdout_examples` \(`--validation_examples`\) takes 23"),
        ({"captions": "celeba"}, "must find CelebA's 40 attributes"),
        ({"captions": "imagenet"}, "must have a column of class labels"),
    ],
)
def test_settings_that_cannot_be(folder, options, message):
    with pytest.raises(ValueError, match=message):
        open_(folder, **options)


@pytest.mark.parametrize(
    "data", ["./nowhere", "no/where/at/all", "images/*.tar", "shard-{00..03}.tar", "train.parquet"]
)
def test_data_that_is_not_there(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="`data` must"):
        open_(data)


def test_nothing_left(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"images/{i}.png")
    with pytest.raises(ValueError, match=r"none is left: 4 were left out \(0.png has no caption: .*; \.\.\.\)"):
        open_(tmp_path / "images")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_file_that_happens_to_be_called_as_in_saved_data_sets(folder, name):
    (folder / name).write_text("{}")
    assert open_(folder).examples_per_epoch == 23


def test_unconditional_data_needs_no_captions(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"images/{i}.png")
    source = open_(tmp_path / "images", captions="none")
    assert source.examples_per_epoch == 4 and source.example(0, 0).caption == ""


def test_built_in_data_sets_that_are_not_there():
    with pytest.raises(ValueError, match="must be one of digits, scenes:16, scenes:32, scenes:64, got 'scenes:48'"):
        open_data(DataConfig("scenes:48"), 2)
    with pytest.raises(ValueError, match="`captions` must be `text` or `none` for built-in data, got 'celeba'"):
        DataConfig("digits", captions="celeba")
    with pytest.raises(ValueError, match="`caption_column` must be left out for built-in data, got 'text'"):
        DataConfig("scenes:16", caption_column="text")
    with pytest.raises(ValueError, match="`data` must be files or a data set of the Hub"):
        DataConfig("digits", streaming=True)


def test_captions_are_drawn_evenly(tmp_path):
    write_image(tmp_path / "images/a.png", caption="one\ntwo")
    source = open_(tmp_path / "images", batch_size=1)
    counts = collections.Counter(source.example(step, 0).caption for step in range(200))
    assert 80 < counts["one"] < 120
