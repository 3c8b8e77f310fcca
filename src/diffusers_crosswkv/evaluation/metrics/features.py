"""Features of many images: by any number of processes, in files of one batch each; none is computed twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from ...files import write_whole
from .image_sets import ImageSet

BATCH_SIZE = 64  # ADM's


class Extractor(Protocol):
    """What is computed of a batch of images."""

    def identity(self, start: int, stop: int) -> str:
        """Changes if the features of images `start` to `stop` would: the network, its weights, prompts."""

    def __call__(self, images: np.ndarray, start: int) -> dict[str, torch.Tensor]:
        """Features by name, `[N, ...]`, of `images` `[N, H, W, 3]` uint8, the first of which is number `start`."""


class FeatureFiles:
    """A folder with the features of a set of images.

    Each process computes batches of its own and writes each whole; a batch that is there, made of the same images by
    the same network, is not made again. Memory is that of one batch.

    Args:
        count: only the first of the images.
    """

    def __init__(self, folder: Path, images: ImageSet, extractor: Extractor, count: int, batch_size: int = BATCH_SIZE):
        self.folder, self.images, self.extractor = folder, images, extractor
        self.batches = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def extract(self, state: PartialState, title: str) -> None:
        """Compute what is missing; returns when all processes are done."""
        own = self.batches[state.process_index :: state.num_processes]
        own = [batch for batch in own if not self._is_there(*batch)]
        bar = tqdm(own, title, unit="batch", disable=not state.is_main_process or not own)
        for start, stop in bar:
            features = self.extractor(self.images.read(start, stop), start)
            tensors = {name: value.float().cpu().contiguous() for name, value in features.items()}
            write_whole(self._path(start, stop), save(tensors, self._metadata(start, stop)))
        state.wait_for_everyone()

    def read(self) -> Iterator[dict[str, torch.Tensor]]:
        """All batches in the order of the images."""
        for batch in self.batches:
            yield load_file(self._path(*batch))

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{start:07d}-{stop:07d}.safetensors"

    def _metadata(self, start: int, stop: int) -> dict[str, str]:
        return {
            "images": self.images.identity(start, stop),
            "extractor": self.extractor.identity(start, stop),
        }

    def _is_there(self, start: int, stop: int) -> bool:
        path = self._path(start, stop)
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as file:
                return file.metadata() == self._metadata(start, stop)
        except SafetensorError:  # damaged since: it is made again
            return False
