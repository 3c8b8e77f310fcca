import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.buckets import make_buckets
from diffusers_crosswkv.data.order import arrange, batches_per_block, epoch_indices


@given(
    batch_size=st.integers(1, 9),
    batches=st.integers(1, 12),
    num_buckets=st.integers(1, 7),
    data=st.data(),
)
def test_every_position_of_a_block_is_in_one_batch_of_one_bucket(batch_size, batches, num_buckets, data):
    count = batch_size * batches
    buckets = data.draw(st.lists(st.integers(0, num_buckets - 1), min_size=count, max_size=count))
    found = arrange(buckets, batch_size, random.Random(0))
    assert all(len(positions) == batch_size for _, positions in found)
    assert sorted(position for _, positions in found for position in positions) == list(range(count))
    wrong = sum(buckets[position] != bucket for bucket, positions in found for position in positions)
    assert wrong <= len(set(buckets)) * (batch_size - 1)  # only what did not fill a batch
    assert all(bucket in {buckets[position] for position in positions} for bucket, positions in found)


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 200), st.integers(1, 60))
def test_an_epoch_holds_every_record_once(size, seed, start, count):
    whole = epoch_indices(size, 0, start + count, seed)
    assert epoch_indices(size, start, count, seed) == whole[start:]
    for epoch in range(len(whole) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_indices(50, 50 * epoch, 50, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_one_bucket_keeps_the_order_of_the_block():
    assert arrange([3] * 6, 2, random.Random(0)) == [(3, [0, 1]), (3, [2, 3]), (3, [4, 5])]


def test_what_is_left_goes_to_a_neighbour():
    found = arrange([0, 0, 0, 1, 5, 5, 5, 5], 4, random.Random(0))
    assert sorted(found) == [(0, [0, 1, 2, 3]), (5, [4, 5, 6, 7])]


@given(st.integers(1, 5000), st.integers(1, 64))
def test_a_block_is_no_longer_than_an_epoch_that_fills_a_batch(size, batch_size):
    batches = batches_per_block(size, batch_size)
    assert 1 <= batches <= 64
    assert batches == 1 or batches * batch_size <= size


@given(st.integers(2, 40), st.sampled_from([8, 16, 64]), st.floats(1, 4))
def test_bucket_sizes(sides, multiple, max_ratio):
    resolution = sides * multiple
    sizes = make_buckets(resolution, multiple, max_ratio).sizes
    assert (resolution, resolution) in sizes
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert height * width <= resolution**2
        assert max(height, width) <= max_ratio * min(height, width)
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(set(ratios))


def test_the_buckets_of_stable_diffusion():
    sizes = make_buckets(512, 64, 2).sizes
    assert sizes == ((640, 384), (576, 448), (512, 512), (448, 576), (384, 640))
    buckets = make_buckets(512, 64, 2)
    found = Counter(sizes[buckets.nearest(size)] for size in [(3000, 2000), (100, 99), (400, 600), (1, 1000)])
    assert found == {(640, 384): 1, (512, 512): 1, (384, 640): 2}
