import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.digits import load_digits
from diffusers_crosswkv.data.examples import BrokenImage, Example
from diffusers_crosswkv.training.batches import MOST_ATTEMPTS, Batches, InMemoryExamples

DIGITS = load_digits()


class Numbers:
    """A data set that is its own numbers."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def image(self, index):
        return torch.full((1, 1, 1), float(index))

    def caption(self, index, rng):
        return str(index)


def seen(size, batch_size, steps, seed=0):
    source = InMemoryExamples(Numbers(size), batch_size, seed)
    return [int(source.example(step, slot).caption) for step in steps for slot in range(batch_size)]


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 3))
def test_every_epoch_holds_every_image_once(size, batch_size, seed):
    endless = seen(size, batch_size, range(3 * size), seed)
    assert all(sorted(endless[i : i + size]) == list(range(size)) for i in range(0, 3 * size * batch_size, size))
    assert seen(size, batch_size, range(size, 2 * size), seed) == endless[size * batch_size : 2 * size * batch_size]


def test_epochs_and_seeds_differ():
    order = seen(50, 50, range(2))
    assert order[:50] != order[50:]
    assert order[:50] != seen(50, 50, range(1), seed=1)


def batches(source=None, slots=range(8), dropout=0.1, seed=0, threads=0, load=lambda example: example.pixels()):
    return Batches(source or InMemoryExamples(DIGITS, 8, seed), load, slots, dropout, seed, threads)


def told(places):
    """What a model is told of each place."""
    return [(place.caption, place.seed, place.loaded.sum().item()) for place in places]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_batch_depends_on_seed_and_step_alone(threads):
    straight = [told(places) for places in batches().from_step(0, 6)]
    torch.rand(5)
    assert [told(places) for places in batches(threads=threads).from_step(3, 6)] == straight[3:]
    assert told(next(batches(seed=1).from_step(0, 1))) != straight[0]
    assert straight[0] != straight[1]


def test_parts_of_processes_make_up_the_batch():
    whole = [told(places) for places in batches().from_step(0, 3)]
    parts = [[told(places) for places in batches(slots=range(i, 8, 2)).from_step(0, 3)] for i in range(2)]
    assert whole == [
        list(itertools.chain.from_iterable(zip(*of_step, strict=True))) for of_step in zip(*parts, strict=True)
    ]


def test_share_of_dropped_captions():
    def captions(dropout):
        source = InMemoryExamples(DIGITS, 1500, 0)
        return [place.caption for place in next(batches(source, range(1500), dropout).from_step(0, 1))]

    assert 0.07 < captions(0.1).count("") / 1500 < 0.13
    assert captions(1.0) == [""] * 1500
    assert "" not in captions(0.0)


class Torn(InMemoryExamples):
    """Every third image is broken."""

    def example(self, step, slot, attempt=0):
        index = (step * self.batch_size + slot + attempt) % len(self.dataset)

        def pixels():
            if index % 3 == 0:
                raise BrokenImage("the file ends too early")
            return self.dataset.image(index)

        return Example(f"image {index}", str(index), str(index), (1, 1), pixels)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_image_makes_room_for_another_one(threads):
    (places,) = batches(Torn(Numbers(9), 8, 0), dropout=0, threads=threads).from_step(0, 1)
    assert [place.caption for place in places] == ["1", "1", "2", "4", "4", "5", "7", "7"]
    broken = [place.broken for place in places]
    reason = "the file ends too early"
    assert broken == [(("image 0", reason),), (), (), (("image 3", reason),), (), (), (("image 6", reason),), ()]


def test_nothing_but_broken_images():
    def load(example):
        raise BrokenImage("no image at all")

    message = rf"{MOST_ATTEMPTS} in a row cannot, such as image \d+: no image at all. Mend or remove them"
    for threads in (0, 2):
        with pytest.raises(ValueError, match=message):
            next(batches(load=load, threads=threads).from_step(0, 5))


def test_threads_end_with_the_batches():
    before = threading.active_count()
    steps = batches(threads=4).from_step(0, 100)
    next(steps)
    assert threading.active_count() > before
    steps.close()
    assert threading.active_count() == before
