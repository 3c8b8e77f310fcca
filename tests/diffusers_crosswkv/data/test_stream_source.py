import collections
import contextlib
import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import image_bytes
from shards import laion_sample, write_shards, write_tar

from diffusers_crosswkv.data.buckets import make_buckets
from diffusers_crosswkv.data.caption_builders import CaptionBuilders
from diffusers_crosswkv.data.config import DataConfig
from diffusers_crosswkv.data.geometry import Geometry
from diffusers_crosswkv.data.loading import open_data
from diffusers_crosswkv.data.records import Record, Wordings
from diffusers_crosswkv.data.stream_shards import Row, StreamShards
from diffusers_crosswkv.data.stream_source import StreamSource

datasets = pytest.importorskip("datasets")
SHAPES = ((40, 60), (60, 40), (48, 48))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards of 2 to 5 samples, 21 in all, in three shapes."""
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, [2, 5, 3, 4, 3, 4], lambda number: SHAPES[number % 3])


@pytest.fixture
def open_():
    """Opens streams, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open_(data, batch_size=4, seed=0, **options):
            config = DataConfig(str(data), **{"resolution": 32, "streaming": True, "stream_block": 8, **options})
            source = open_data(config, batch_size, seed, progress=False)
            stack.callback(source.close)
            return source

        yield open_


def captions(source, step, slots):
    return [source.example(step, slot).caption for slot in slots]


def shown(source, step, slots):
    return [(x.name, x.caption, x.identity, x.size) for x in (source.example(step, slot) for slot in slots)]


class MadeUp:
    """Shards without files, `size` records each."""

    def __init__(self, count, size):
        self.count, self.size = count, size

    def rows(self, shard, start):
        for row in range(start, self.size):
            name = f"{shard}/{row}"
            yield Row(row + 1, Record(name, name, Wordings((name,)), io.BytesIO), SHAPES[(shard + row) % 3])


@given(
    count=st.integers(1, 6),
    size=st.integers(1, 7),
    batch_size=st.integers(1, 6),
    steps=st.integers(1, 3),
    buckets=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_image_once_in_an_epoch_and_one_size_in_a_batch(count, size, batch_size, steps, buckets, seed):
    shapes = make_buckets(32, 8, 2 if buckets else 1)
    geometry = Geometry("center", False, "lanczos", 3)
    source = StreamSource(MadeUp(count, size), shapes, geometry, batch_size, seed, steps * batch_size)
    streams = 1 if buckets else math.gcd(batch_size, count)
    epoch, block = count * size // streams, steps * batch_size // streams  # records of a stream
    names = []
    for step in range(math.lcm(epoch, block) // block * steps):  # whole blocks and whole epochs
        examples = [source.example(step, slot) for slot in range(batch_size)]
        names += [example.name for example in examples]
        assert len({example.size for example in examples}) == 1
    counts = collections.Counter(names)
    assert len(counts) == count * size and len(set(counts.values())) == 1
    resumed = StreamSource(MadeUp(count, size), shapes, geometry, batch_size, seed, steps * batch_size)
    middle = len(names) // batch_size // 2
    resumed.load_state_dict(source.state_dict(middle))
    assert captions(resumed, middle, range(batch_size)) == captions(source, middle, range(batch_size))
    source.close()
    resumed.close()


class Flaky(MadeUp):
    """Fails once in the middle of every shard."""

    failed = frozenset()

    def rows(self, shard, start):
        for row in super().rows(shard, start):
            if row.end == 3 and shard not in self.failed:
                self.failed |= {shard}
                raise ConnectionError("gone")
            yield row


def test_a_failed_read_is_made_anew():
    geometry = Geometry("center", False, "lanczos", 3)
    sources = [StreamSource(kind(3, 5), make_buckets(32, 8, 1), geometry, 2, 0, 4) for kind in (MadeUp, Flaky)]
    expected = [captions(sources[0], step, range(2)) for step in range(9)]
    found = []
    while len(found) < 9:
        with contextlib.suppress(ConnectionError):
            found.append(captions(sources[1], len(found), range(2)))
    assert found == expected
    for source in sources:
        source.close()


def test_whole_epochs_hold_every_image_once(open_, shards):
    source = open_(shards, batch_size=3, stream_block=21, buckets=True)  # one stream, a block is an epoch
    orders = []
    for epoch in range(3):
        names = [name for step in range(7) for name in captions(source, epoch * 7 + step, range(3))]
        assert sorted(names) == sorted(f"caption {i}" for i in range(21))
        orders.append(tuple(names))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("options", [{}, {"buckets": True}, {"holdout_examples": 2}, {"stream_block": 1}])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_resuming_at_any_step_equals_going_straight(open_, shards, batch_size, options):
    slots = range(batch_size)
    straight = open_(shards, batch_size, flip=True, crop="random", **options)
    expected, states = [], []
    for step in range(16):  # three epochs
        states.append(json.dumps(straight.state_dict(step)))
        expected.append(shown(straight, step, slots))
    states.append(json.dumps(straight.state_dict(16)))
    for step in range(0, 16, 3):
        resumed = open_(shards, batch_size, flip=True, crop="random", **options)
        resumed.load_state_dict(json.loads(states[step]))
        assert [shown(resumed, later, slots) for later in range(step, 16)] == expected[step:]
        assert json.dumps(resumed.state_dict(16)) == states[16]


def test_pixels_are_the_same_after_resuming(open_, shards):
    straight, resumed = open_(shards, flip=True), open_(shards, flip=True)
    expected = [straight.example(9, slot).pixels() for slot in range(4)]
    resumed.load_state_dict(straight.state_dict(9))
    assert all(torch.equal(resumed.example(9, slot).pixels(), expected[slot]) for slot in range(4))


def test_going_back_to_an_earlier_block(open_, shards):
    source = open_(shards, stream_block=4)
    early = shown(source, 1, range(4))
    shown(source, 60, range(4))
    assert shown(source, 1, range(4)) == early


class Watched(StreamShards):
    """Notes which rows are read."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []

    def rows(self, shard, start):
        for row in super().rows(shard, start):
            self.read.append((shard, row.end))
            yield row


@pytest.fixture
def watched(monkeypatch):
    made = []
    monkeypatch.setattr(
        "diffusers_crosswkv.data.loading.StreamShards", lambda *x: made.append(Watched(*x)) or made[-1]
    )
    monkeypatch.setattr("diffusers_crosswkv.data.stream_source.StreamSource._read_ahead", lambda *x: None)
    return made


def test_two_processes_see_what_one_sees_and_read_different_shards(open_, shards, watched):
    alone = open_(shards)
    expected = [captions(alone, step, range(4)) for step in range(6)]
    pair = [open_(shards), open_(shards)]
    for step in range(6):
        for rank, source in enumerate(pair):
            assert captions(source, step, range(rank, 4, 2)) == expected[step][rank::2]
    first, second = ({shard for shard, end in reader.read[:8]} for reader in watched[1:])
    assert first.isdisjoint(second)
    states = [source.state_dict(6) for source in pair]
    assert states[0] != states[1]
    resumed = open_(shards)  # by one process
    for values in states:
        resumed.load_state_dict(values)
    assert resumed.state_dict(6) == alone.state_dict(6)


def test_resuming_reads_no_more_than_is_needed(open_, shards, watched):
    source = open_(shards, 4, buckets=True)
    for step in range(4):
        captions(source, step, range(4))
    state = source.state_dict(4)
    resumed = open_(shards, 4, buckets=True)
    resumed.load_state_dict(state)
    captions(resumed, 4, range(4))
    assert len(watched[1].read) == 8  # one block


def test_a_process_without_a_state_of_its_own_reads_again(open_, shards):
    straight = open_(shards)
    expected = [shown(straight, step, range(4)) for step in range(8)]
    resumed = open_(shards)
    partial = straight.state_dict(7)
    del partial["streams"]["1"]
    resumed.load_state_dict(partial)
    assert shown(resumed, 7, range(4)) == expected[7]


def test_the_holdout_is_never_trained_on(open_, shards):
    source = open_(shards, holdout_examples=2, stream_block=4)
    held = {example.caption for example in source.holdout}
    assert held == {"caption 0", "caption 1"}
    seen = {caption for step in range(15) for caption in captions(source, step, range(4))}
    assert len(seen) == 19 and seen.isdisjoint(held)
    with pytest.raises(
        ValueError, match=r"`--validation_examples`\) must not be .* in the first shard of a stream, got 9 for 2"
    ):
        open_(shards, holdout_examples=9)


def test_what_cannot_be_used_is_listed_once_and_another_comes(open_, tmp_path):
    samples = {str(i): laion_sample(i) for i in range(9)}
    samples["2"]["jpg"] = b"no image"
    samples["5"]["txt"] = "  "
    samples["7"]["jpg"] = samples["7"]["jpg"][:-150]  # the header is whole
    path = write_tar(tmp_path / "a.tar", samples)
    source = open_(path, 1, stream_block=7, caption_column="txt")
    names = [source.example(step, 0).name for step in range(21)]
    assert set(collections.Counter(names).values()) == {3}
    assert sorted(source.findings()) == [
        ("a.tar/2", "cannot be read: no image of a kind that Pillow knows"),
        ("a.tar/5", "has an empty caption"),
    ]
    step = names.index("a.tar/7")
    others = {source.example(step, 0, attempt).name for attempt in range(1, 8)}
    assert "a.tar/7" not in others and len(others) > 2


def test_a_shard_that_is_cut_off_ends_there(open_, tmp_path):
    folder = write_shards(tmp_path, [4, 4])
    path = folder / "00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    source = open_(folder, 1, stream_block=4)
    seen = {source.example(step, 0).caption for step in range(24)}
    assert {f"caption {i}" for i in range(4)} <= seen
    assert [reason.split(":")[0] for _, reason in source.findings()] == [f"is damaged after row {len(seen) - 4}"]


def test_a_stream_without_anything(open_, tmp_path):
    samples = {str(i): {"jpg": image_bytes(form="JPEG"), "txt": " "} for i in range(3)}
    source = open_(write_tar(tmp_path / "a.tar", samples), 2)
    with pytest.raises(ValueError, match=r"in a whole epoch there was none .*a.tar/0 has an empty caption"):
        source.example(0, 0)


def test_another_number_of_shards(open_, shards, tmp_path):
    state = open_(shards).state_dict(0)
    with pytest.raises(ValueError, match="must find the 6 shards it began with, got 2"):
        open_(write_shards(tmp_path, [2, 2])).load_state_dict(state)


def test_streams_of_a_saved_data_set_and_of_any_iterable(open_, tmp_path):
    images = [{"bytes": image_bytes(seed=i), "path": None} for i in range(12)]
    columns = {"image": images, "text": list("abcdefghijkl")}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "set", num_shards=3)
    source = open_(tmp_path / "set", 3, stream_block=12)
    assert sorted(caption for step in range(4) for caption in captions(source, step, range(3))) == columns["text"]
    stream = StreamShards(dataset.to_iterable_dataset(4), "rows", None, CaptionBuilders())
    assert [row.record.name for row in stream.rows(1, 1)] == ["rows[shard 1, row 1]", "rows[shard 1, row 2]"]
