"""The order in which examples come: endless shuffled epochs, cut into blocks of batches of one size each."""

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

BLOCK_BATCHES = 64

Batch = tuple[int, list[int]]  # a bucket, and positions in a block


def epoch_indices(size: int, start: int, count: int, seed: int) -> list[int]:
    """Numbers `start` to `start + count` of the endless sequence of shuffled epochs of `size` records."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(start + len(indices), size)
        indices += epoch_order(size, epoch, seed)[offset : offset + count - len(indices)]
    return indices


@lru_cache(maxsize=2)
def epoch_order(size: int, epoch: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed}/epoch {epoch}").shuffle(order)
    return order


def batches_per_block(size: int, batch_size: int, at_most: int = BLOCK_BATCHES) -> int:
    """So many that a block is not longer than an epoch, unless an epoch does not fill one batch."""
    return max(1, min(at_most, size // batch_size))


def arrange(buckets: Sequence[int], batch_size: int, rng: random.Random) -> list[Batch]:
    """Batches of one bucket each that hold every position of a block exactly once.

    Args:
        buckets: the bucket of each record of the block, numbered by aspect ratio; a whole number of batches.

    What does not fill a batch of its own bucket is joined with what is left of the buckets beside it, and takes the
    bucket of the one in the middle. The order of the batches is drawn from `rng`; if there is one bucket only, that of
    the block is kept.
    """
    members = defaultdict(list)
    for position, bucket in enumerate(buckets):
        members[bucket].append(position)
    batches: list[Batch] = []
    rest: list[tuple[int, int]] = []
    for bucket, positions in sorted(members.items()):
        full = len(positions) - len(positions) % batch_size
        batches += [(bucket, positions[i : i + batch_size]) for i in range(0, full, batch_size)]
        rest += [(bucket, position) for position in positions[full:]]
    for start in range(0, len(rest), batch_size):
        joined = rest[start : start + batch_size]
        batches.append((joined[batch_size // 2][0], [position for _, position in joined]))
    if len(members) > 1:
        rng.shuffle(batches)
    return batches
