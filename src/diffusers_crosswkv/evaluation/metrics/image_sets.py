"""The images that are measured: a folder, or an `.npz` batch in the format of the ADM suite."""

import hashlib
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image

from ...data.image_folder import walk
from ...data.images import decode, read_size
from ...data.records import file_identity
from .frechet import Gaussian

RGB = 3
UNREDUCED = (10**6, 10**6)  # JPEG files are not decoded at a part of their size
ARRAY = "arr_0"
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class ImageSet(Protocol):
    """Images of one size in a fixed order."""

    name: str
    resize: str
    """What was done to them before they are measured; `none`."""

    statistics: tuple[str, ...]
    """Features of which statistics came along; those of more images than are there, perhaps."""

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


def open_images(path: Path, resize: int | None = None) -> ImageSet:
    """A folder of images or an `.npz` file.

    Args:
        resize: crop each image to its central square and resize it to this side, as ADM prepares training images.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no image in it.
        ValueError: it is something else; the images of a batch cannot be resized.
    """
    if path.is_dir():
        return FolderImages(path, resize)
    if not path.exists():
        raise FileNotFoundError(f"There are no images at {path}; give a folder of images or an .npz batch.")
    if path.suffix != ".npz":
        raise ValueError(f"Images must be a folder or an .npz batch in the format of the ADM suite, got {path}.")
    if resize is not None:
        raise ValueError(f"The images of {path} cannot be resized: a batch is measured as it is; leave resizing out.")
    return NpzImages(path)


class FolderImages:
    """All images below a folder, in the order of their paths; grey ones become RGB, transparent parts white.

    Raises:
        FileNotFoundError: there are none.
    """

    def __init__(self, folder: Path, resize: int | None = None):
        self.root, self.name, self.side = folder.resolve(), str(folder), resize
        self.resize = "none" if resize is None else f"centre {resize} (ADM: box halving, bicubic)"
        self.statistics: tuple[str, ...] = ()
        self.gaussians: dict[str, Gaussian] = {}
        self.files = sorted(walk(self.root))
        if not self.files:
            raise FileNotFoundError(f"There are no images in {folder}.")

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def size(self) -> tuple[int, int]:
        if self.side is not None:
            return self.side, self.side
        with (self.root / self.files[0]).open("rb") as file:
            return read_size(file)

    def read(self, start: int, stop: int) -> np.ndarray:
        """
        Raises:
            ValueError: an image has another size than the first.
            BrokenImage: a file cannot be decoded.
        """
        return np.stack([self._image(name) for name in self.files[start:stop]])

    def _image(self, name: str) -> np.ndarray:
        with (self.root / name).open("rb") as file:
            image = decode(file, RGB, UNREDUCED)
        if self.side is not None:
            image = central_square(image, self.side)
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"All images must have one size, got {image.height} x {image.width} of {name} in {self.root} and "
                f"{self.size[0]} x {self.size[1]} of {self.files[0]}; resize them to one (--reference_resize)."
            )
        return np.asarray(image)

    def identity(self, start: int, stop: int) -> str:
        files = [file_identity(self.root / name) for name in self.files[start:stop]]
        return digest([self.resize, *files])


class NpzImages:
    """A batch of the ADM suite: `arr_0` `[N, H, W, 3]` uint8 and, of reference batches, statistics of more images.

    Images are read from the file as they are needed; nothing in it is unpickled.

    Raises:
        ValueError: the file holds something else.
    """

    resize = "none"

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        try:
            self.shape, self.statistics = self._read_headers()
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"{path} must be an .npz batch of the ADM suite, with {ARRAY} of `[N, H, W, 3]` uint8 ({error})."
            ) from error

    def _read_headers(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        with zipfile.ZipFile(self.path) as archive:
            there = set(archive.namelist())
            statistics = tuple(x for x, names in STATISTICS.items() if {f"{name}.npy" for name in names} <= there)
            if f"{ARRAY}.npy" not in there and statistics:
                return (0, 0, 0, RGB), statistics
            if f"{ARRAY}.npy" not in there:
                raise ValueError(f"{self.path} must hold {ARRAY} or statistics, got {', '.join(sorted(there))}.")
            with archive.open(f"{ARRAY}.npy") as file:
                shape, fortran, dtype = read_npy_header(file)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != RGB or fortran:
            raise ValueError(
                f"{ARRAY} of {self.path} must be `[N, H, W, 3]` uint8 in C order, got {list(shape)} {dtype}."
            )
        return shape, statistics

    @cached_property
    def gaussians(self) -> dict[str, Gaussian]:
        with np.load(self.path, allow_pickle=False) as arrays:
            pairs = {feature: [arrays[name] for name in STATISTICS[feature]] for feature in self.statistics}
        return {feature: Gaussian.from_covariance(*pair) for feature, pair in pairs.items()}

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[1], self.shape[2]

    def read(self, start: int, stop: int) -> np.ndarray:
        count, image_bytes = stop - start, int(np.prod(self.shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as file:
            read_npy_header(file)
            file.seek(start * image_bytes, 1)
            content = file.read(count * image_bytes)
        return np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])

    def identity(self, start: int, stop: int) -> str:
        return digest([file_identity(self.path), f"{start} {stop}"])


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"Arrays must have the versions 1.0 or 2.0 of NumPy's format, got {version}.")
    read: Callable = readers[version]
    return read(file)


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
