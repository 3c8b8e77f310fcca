"""The data sets that need no files, `digits` and `scenes`, as records."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import torch
from PIL import Image

from .digits import load_digits
from .records import Finding, Record
from .scene_splits import TRAINING, Scenes
from .scenes import GRIDS, to_pixels

DIGITS = "digits"
SCENES = "scenes"
DIGITS_RESOLUTION = 8


@dataclass(frozen=True)
class BuiltIn:
    """Pictures and captions made by functions of a number; pixels are rounded to 8 bits, as in a file."""

    label: str
    resolution: int
    size: int
    image: Callable[[int], torch.Tensor]
    caption: Callable[[int, random.Random], str]
    findings: list[Finding] = field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def key(self, index: int) -> str:
        return self.name(index)

    def record(self, index: int) -> Record:
        return Record(self.name(index), self.key(index), partial(self.caption, index), partial(self._open, index))

    def _open(self, index: int) -> BinaryIO:
        file = io.BytesIO()
        image = self.image(index)
        pixels = to_pixels(image.expand(3, -1, -1))
        Image.fromarray(pixels).save(file, "BMP")
        file.seek(0)
        return file


def is_built_in(data: str) -> bool:
    return data.split(":")[0] in (DIGITS, SCENES)


def open_built_in(data: str, unconditional: bool = False) -> BuiltIn:
    """`digits` (8 pixels), or `scenes:16`, `scenes:32` or `scenes:64`; `scenes` alone has 32 pixels.

    Args:
        unconditional: all captions are empty.

    Raises:
        ValueError: scenes have no such resolution, or something follows `digits`.
    """
    label, _, resolution = data.partition(":")
    if label == DIGITS and not resolution:
        digits = load_digits()
        caption = no_caption if unconditional else digits.caption
        return BuiltIn(DIGITS, DIGITS_RESOLUTION, len(digits), digits.image, caption)
    if label == SCENES and (resolution or "32") in map(str, GRIDS):
        scenes = Scenes(int(resolution or 32), TRAINING)
        caption = no_caption if unconditional else scenes.caption
        return BuiltIn(f"{SCENES}:{scenes.resolution}", scenes.resolution, len(scenes), scenes.image, caption)
    known = ", ".join([DIGITS, *(f"{SCENES}:{side}" for side in GRIDS)])
    raise ValueError(f"Built-in `data` must be one of {known}, got {data!r}.")


def no_caption(index: int, rng: random.Random) -> str:
    return ""
