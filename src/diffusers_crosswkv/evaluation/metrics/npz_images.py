"""An `.npz` batch in the format of the ADM suite, and how either kind of images is opened."""

import weakref
import zipfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from ...data.records import file_identity
from .frechet import Gaussian
from .image_sets import RGB, FolderImages, ImageSet, digest

ARRAY = "arr_0"
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError)


def open_images(path: Path, resize: int | None = None) -> ImageSet:
    """A folder of images or an `.npz` file.

    Args:
        resize: see [`FolderImages`].

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


class NpzImages:
    """A batch of the ADM suite: `arr_0` `[N, H, W, 3]` uint8 and, of reference batches, statistics of more images.

    Images are read from the file as they are needed: once through it where they are asked for in their order. Nothing
    in it is unpickled.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """

    resize = "none"

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._stream: IO[bytes] | None = None
        self._next = 0  # the image that the stream is at
        try:
            self.shape, self.statistics = self._read_headers()
        except (*DAMAGES, OSError) as error:
            raise ValueError(
                f"{path} must be an .npz batch of the ADM suite, with {ARRAY} of `[N, H, W, 3]` uint8 ({error})."
            ) from error

    def _read_headers(self) -> tuple[tuple[int, ...], dict[str, int]]:
        with zipfile.ZipFile(self.path) as archive:
            there = set(archive.namelist())
            statistics = {
                feature: self._dimensions(archive, *names)
                for feature, names in STATISTICS.items()
                if {f"{name}.npy" for name in names} <= there
            }
            if f"{ARRAY}.npy" not in there and statistics:
                return (0, 0, 0, RGB), statistics
            if f"{ARRAY}.npy" not in there:
                raise ValueError(f"{self.path} must hold {ARRAY} or statistics, got {', '.join(sorted(there))}.")
            shape, fortran, dtype = header_of(archive, ARRAY)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != RGB or fortran:
            raise ValueError(
                f"{ARRAY} of {self.path} must be `[N, H, W, 3]` uint8 in C order, got {list(shape)} {dtype}."
            )
        return shape, statistics

    def _dimensions(self, archive: zipfile.ZipFile, mean: str, covariance: str) -> int:
        shapes = [header_of(archive, name)[0] for name in (mean, covariance)]
        if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
            raise ValueError(
                f"{mean} and {covariance} of {self.path} must be a mean `[D]` and its covariance `[D, D]`, got "
                f"{list(shapes[0])} and {list(shapes[1])}; write the file anew."
            )
        return shapes[0][0]

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
        """
        Raises:
            ValueError: the file is damaged there.
        """
        image_bytes = int(np.prod(self.shape[1:]))
        try:
            stream = self._stream_at(start, image_bytes)
            content = stream.read((stop - start) * image_bytes)
            self._next = stop
            if stop == len(self):
                self._close()
            return np.frombuffer(content, np.uint8).reshape(stop - start, *self.shape[1:])
        except (*DAMAGES, ValueError) as error:
            self._close()
            raise ValueError(
                f"{self.path} is damaged at its images {start} to {stop - 1} ({error}); download or write it anew."
            ) from error

    def _stream_at(self, start: int, image_bytes: int) -> IO[bytes]:
        """The stream stays open between calls, for whatever lies before a place must be decompressed to get there."""
        if self._stream is None or start < self._next:
            self._close()
            with zipfile.ZipFile(self.path) as archive:  # which closes the file only when its streams are closed
                self._stream = archive.open(f"{ARRAY}.npy")
            weakref.finalize(self, self._stream.close)
            read_npy_header(self._stream)
        self._stream.seek((start - self._next) * image_bytes, 1)
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next = None, 0

    def identity(self, start: int, stop: int) -> str:
        return digest([file_identity(self.path), f"{start} {stop}"])


def header_of(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    with archive.open(f"{name}.npy") as file:
        return read_npy_header(file)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"Arrays must have the versions 1.0 or 2.0 of NumPy's format, got {version}.")
    read: Callable = readers[version]
    return read(file)
