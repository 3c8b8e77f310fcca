"""Sizes near one area for images of different aspect ratios."""

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Size

CANDIDATES = 8  # for an image in the place of a broken one


@dataclass(frozen=True)
class Buckets:
    """Sizes (height, width), sorted from tall to wide."""

    sizes: tuple[Size, ...]

    def nearest(self, size: Size) -> int:
        """The bucket of which least is cut off: that with the nearest logarithm of the aspect ratio."""
        wanted = log_ratio(size)
        ratios = [log_ratio(x) for x in self.sizes]
        right = bisect_left(ratios, wanted)
        near = range(max(right - 1, 0), min(right + 1, len(ratios)))
        return min(near, key=lambda i: abs(ratios[i] - wanted))


def make_buckets(resolution: int, multiple: int, max_ratio: float) -> Buckets:
    """All sizes with sides that are multiples of `multiple`, as large as `resolution` squared allows, never larger.

    Args:
        resolution: side of the square bucket, a multiple of `multiple`.
        max_ratio: of the longer to the shorter side, >= 1; 1 leaves the square alone.
    """
    sizes = {}
    for width in range(multiple, int(resolution * math.sqrt(max_ratio)) + multiple, multiple):
        height = resolution**2 // width // multiple * multiple
        if height and max(width / height, height / width) <= max_ratio:
            sizes[height] = (height, width)  # the widest of those with one height
    return Buckets(tuple(sorted(sizes.values(), key=log_ratio)))


def nearest_shape(sizes: Sequence[Size], index: int, wanted: Size, rng: random.Random) -> int:
    """An image in the place of image `index`: among a few others, that of which least is cut off."""
    others = [i for i in rng.sample(range(len(sizes)), min(CANDIDATES, len(sizes))) if i != index]
    return min(others, key=lambda i: abs(log_ratio(sizes[i]) - log_ratio(wanted)), default=index)


def log_ratio(size: Size) -> float:
    return math.log(size[1] / size[0])
