"""The images that are measured: a folder, or some images of a set."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...data.examples import BrokenImage
from ...data.image_folder import walk
from ...data.images import decode, read_size
from ...data.records import file_identity
from .frechet import Gaussian

RGB = 3
UNREDUCED = (10**6, 10**6)  # JPEG files are not decoded at a part of their size


class ImageSet(Protocol):
    """Images of one size in a fixed order."""

    name: str
    resize: str
    """What was done to them before they are measured; `none`."""

    statistics: dict[str, int]
    """Features of which statistics came along, and their dimensions; those of more images than are there, perhaps."""

    @property
    def gaussians(self) -> dict[str, Gaussian]:
        """These statistics."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """`[stop - start, H, W, 3]`, uint8."""

    def identity(self, start: int, stop: int) -> str:
        """Changes if one of these images does."""


class FolderImages:
    """Images of a folder; grey ones become RGB, transparent parts white.

    Args:
        resize: crop each image to its central square and resize it to this side, as ADM prepares training images.
        files: their paths in the folder; None: all below it, in the order of their paths, where numbers are ordered as
            numbers, so that `2.png` comes before `10.png`.

    Raises:
        FileNotFoundError: there are none.
    """

    def __init__(self, folder: Path, resize: int | None = None, files: Sequence[str] | None = None):
        self.root, self.name, self.side = folder.resolve(), str(folder), resize
        self.resize = "none" if resize is None else f"centre {resize} (ADM: box halving, bicubic)"
        self.statistics: dict[str, int] = {}
        self.gaussians: dict[str, Gaussian] = {}
        self.files = sorted(walk(self.root), key=natural) if files is None else list(files)
        if not self.files:
            raise FileNotFoundError(f"There are no images in {folder}.")

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def size(self) -> tuple[int, int]:
        if self.side is not None:
            return self.side, self.side
        with (self.root / self.files[0]).open("rb") as file:
            try:
                return read_size(file)
            except BrokenImage as error:
                raise self._broken(self.files[0], error) from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """
        Raises:
            ValueError: an image has another size than the first, or its file cannot be decoded.
        """
        return np.stack([self._image(name) for name in self.files[start:stop]])

    def _image(self, name: str) -> np.ndarray:
        with (self.root / name).open("rb") as file:
            try:
                image = decode(file, RGB, UNREDUCED)
            except BrokenImage as error:
                raise self._broken(name, error) from error
        if self.side is not None:
            image = central_square(image, self.side)
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"All images must have one size, got {image.height} x {image.width} of {name} in {self.root} and "
                f"{self.size[0]} x {self.size[1]} of {self.files[0]}; resize them to one (--reference_resize)."
            )
        return np.asarray(image)

    def _broken(self, name: str, error: BrokenImage) -> ValueError:
        return ValueError(f"Images must be whole, but {name} in {self.root} {error}; repair or delete it.")

    def identity(self, start: int, stop: int) -> str:
        files = [file_identity(self.root / name) for name in self.files[start:stop]]
        return digest([self.resize, *files])


class SomeImages:
    """Images of a set by their indices, in rising order."""

    def __init__(self, images: ImageSet, indices: Sequence[int]):
        self.images, self.indices = images, list(indices)
        self.name, self.resize, self.size = images.name, images.resize, images.size
        self.statistics: dict[str, int] = {}
        self.gaussians: dict[str, Gaussian] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([self.images.read(i, i + 1) for i in self.indices[start:stop]])

    def identity(self, start: int, stop: int) -> str:
        return digest([self.images.identity(i, i + 1) for i in self.indices[start:stop]])


def natural(name: str) -> tuple[list[Any], str]:
    """A key by which names are sorted with their numbers as numbers."""
    parts = re.split("([0-9]+)", name)  # a number at every other place
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def central_square(image: Image.Image, side: int) -> Image.Image:
    """As ADM crops its training images: halved by boxes while twice as large, then bicubic, then the centre."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
