"""From an image of any size to the pixels of an example: cover, crop, flip."""

import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from .examples import BrokenImage, Example
from .images import decode, reason
from .records import Record, Size

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("lanczos", "bicubic", "bilinear", "box", "nearest")
}
CROPS = ("center", "random")
REDUCING_GAP = 3.0  # Pillow shrinks by whole numbers first, to three times the size: faster, and not to be seen


@dataclass(frozen=True)
class Geometry:
    """How images are fitted, see [`DataConfig`] for the values."""

    crop: str
    flip: bool
    interpolation: str
    channels: int

    def make_example(self, record: Record, size: Size, rng: random.Random) -> Example:
        """`record` at `size`, with the place of the crop, the flip and the wording drawn from `rng`."""
        place = (rng.random(), rng.random()) if self.crop == "random" else (0.5, 0.5)
        flipped = self.flip and rng.random() < 0.5
        return self._example(record, size, place, flipped, record.caption(rng))

    def make_fixed_example(self, record: Record, size: Size) -> Example:
        """`record` at `size` as it is for validation: from the centre, not flipped, always in the same wording."""
        return self._example(record, size, (0.5, 0.5), False, record.caption(random.Random(0)))

    def _example(self, record: Record, size: Size, place: tuple[float, float], flipped: bool, caption: str) -> Example:
        changes = f"{size[0]}x{size[1]}x{self.channels} {self.interpolation} {place} {'flipped' if flipped else ''}"
        pixels = partial(read_pixels, record, size, place, flipped, self)
        return Example(record.name, caption, f"{record.identity} {changes}".strip(), size, pixels)


def read_pixels(
    record: Record, size: Size, place: tuple[float, float], flipped: bool, geometry: Geometry
) -> torch.Tensor:
    """`[C, height, width]` in [-1, 1].

    Raises:
        BrokenImage: the file cannot be read.
    """
    try:
        file = record.open()
    except OSError as error:
        raise BrokenImage(reason(error)) from error
    with file:
        image = decode(file, geometry.channels, size)
    image = cover(image, size, place, INTERPOLATIONS[geometry.interpolation])
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    array = np.array(image).reshape(*size, geometry.channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)


def cover(image: Image.Image, size: Size, place: tuple[float, float], interpolation: Image.Resampling) -> Image.Image:
    """The largest part of `image` with the shape of `size`, resized (antialiased) to it.

    `place` in [0, 1] x [0, 1] says where the part lies: (0, 0) is the upper left, (0.5, 0.5) the centre.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    part = (min(width / scale, image.width), min(height / scale, image.height))
    left, top = ((whole - x) * p for whole, x, p in zip(image.size, part, place, strict=True))
    if scale == 1:  # nothing is resized: whole pixels
        left, top = round(left), round(top)
    box = (left, top, min(left + part[0], image.width), min(top + part[1], image.height))
    return image.resize((width, height), interpolation, box, reducing_gap=REDUCING_GAP)
