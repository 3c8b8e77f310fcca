"""What each step trains on: a function of seed and step alone, so that a resumed run sees what it would have seen."""

import hashlib
import random
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from ..data.examples import BrokenImage, Example, ExampleSource
from ..data.order import epoch_order

Loaded = TypeVar("Loaded")
MOST_ATTEMPTS = 20


class CaptionedImages(Protocol):
    """A data set, in memory or made on demand."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """`[C, height, width]` in [-1, 1]."""
        ...

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption of one image; where there are several, `rng` draws."""
        ...


class InMemoryExamples:
    """[`CaptionedImages`] as an [`ExampleSource`]: shuffled anew every epoch, epochs joined without a seam."""

    def __init__(self, dataset: CaptionedImages, batch_size: int, seed: int):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    @property
    def examples_per_epoch(self) -> int:
        return len(self.dataset)

    def example(self, step: int, slot: int, attempt: int = 0) -> Example:
        index = self.index(step * self.batch_size + slot)
        image = self.dataset.image(index)
        caption = self.dataset.caption(index, random.Random(f"{self.seed}/{step}/{slot}/caption"))
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        height, width = image.shape[-2:]
        return Example(f"image {index}", caption, digest, (height, width), lambda: image)

    def index(self, place: int) -> int:
        """Which image is in a place of the endless sequence of shuffled epochs."""
        epoch, offset = divmod(place, len(self.dataset))
        return epoch_order(len(self.dataset), epoch, self.seed)[offset]

    def state_dict(self, step: int) -> dict[str, Any]:
        return {}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        pass

    def findings(self) -> list[tuple[str, str]]:
        return []


def as_source(data: ExampleSource | CaptionedImages, batch_size: int, seed: int) -> ExampleSource:
    if isinstance(data, ExampleSource):
        return data
    return InMemoryExamples(data, batch_size, seed)


@dataclass(frozen=True)
class Place(Generic[Loaded]):
    """One place of a batch, filled.

    Args:
        seed: of all that is drawn for it.
        caption: what the model is told, "" if the caption was dropped.
        broken: names and reasons of images that would have been here and cannot be read.
    """

    example: Example
    loaded: Loaded
    seed: int
    caption: str
    broken: tuple[tuple[str, str], ...]


class Batches(Generic[Loaded]):
    """This process's share of every step, read ahead in threads.

    Args:
        load: what can be done ahead for one example, such as decoding; raises [`BrokenImage`].
        slots: this process's places in each batch.
        threads: 0 loads in the calling thread.
    """

    def __init__(
        self,
        source: ExampleSource,
        load: Callable[[Example], Loaded],
        slots: range,
        caption_dropout: float,
        seed: int,
        threads: int,
    ):
        self.source, self.load, self.slots = source, load, slots
        self.caption_dropout, self.seed, self.threads = caption_dropout, seed, threads

    def from_step(self, start: int, stop: int) -> Generator[list[Place[Loaded]], None, None]:
        """The shares of steps `start` to `stop`, in order."""
        if self.threads == 0:
            for step in range(start, stop):
                yield [self.place(step, slot) for slot in self.slots]
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="examples")
        try:
            ahead = [self.submit(pool, step) for step in range(start, min(start + 2, stop))]
            for step in range(start, stop):
                places = [future.result() for future in ahead.pop(0)]
                if step + 2 < stop:
                    ahead.append(self.submit(pool, step + 2))
                yield places
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, pool: ThreadPoolExecutor, step: int) -> list[Future[Place[Loaded]]]:
        return [pool.submit(self.place, step, slot) for slot in self.slots]

    def place(self, step: int, slot: int) -> Place[Loaded]:
        """Fill one place; an image that cannot be read makes room for another one."""
        rng = random.Random(f"{self.seed}/{step}/{slot}")
        dropped, seed = rng.random() < self.caption_dropout, rng.getrandbits(63)
        broken: list[tuple[str, str]] = []
        for attempt in range(MOST_ATTEMPTS):
            example = self.source.example(step, slot, attempt)
            try:
                loaded = self.load(example)
            except BrokenImage as reason:
                broken.append((example.name, str(reason)))
                continue
            return Place(example, loaded, seed, "" if dropped else example.caption, tuple(broken))
        raise ValueError(
            f"The data must hold images that can be read, but {MOST_ATTEMPTS} in a row cannot, such as "
            f"{broken[0][0]}: {broken[0][1]}. Mend or remove them."
        )
