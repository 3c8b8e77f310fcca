"""What each step trains on: a function of seed and step alone, so that a resumed run sees what it would have seen."""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch


class CaptionedImages(Protocol):
    """A data set, in memory or made on demand."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """`[C, height, width]` in [-1, 1]."""
        ...

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption of one image; where there are several, `rng` draws."""
        ...


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # [B, C, height, width]
    captions: list[str]
    noise: torch.Tensor  # [B, C, height, width]
    timesteps: torch.Tensor  # [B]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.images.to(device), self.captions, self.noise.to(device), self.timesteps.to(device))

    def part(self, index: int, count: int) -> "Batch":
        """The share of process `index` of `count`."""
        return Batch(
            self.images[index::count],
            self.captions[index::count],
            self.noise[index::count],
            self.timesteps[index::count],
        )


def draw_batch(
    dataset: CaptionedImages, step: int, batch_size: int, caption_dropout: float, num_train_timesteps: int, seed: int
) -> Batch:
    """The batch of one step: images in a new order every epoch, captions, noise and timesteps."""
    indices = epoch_indices(len(dataset), step * batch_size, batch_size, seed)
    rng = random.Random(f"{seed}/{step}")
    captions = ["" if rng.random() < caption_dropout else dataset.caption(i, rng) for i in indices]
    images = torch.stack([dataset.image(i) for i in indices])
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{step}/noise").getrandbits(63))
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, num_train_timesteps, (batch_size,), generator=generator)
    return Batch(images, captions, noise, timesteps)


def epoch_indices(size: int, start: int, count: int, seed: int) -> list[int]:
    """Numbers `start` to `start + count` of the endless sequence of shuffled epochs."""
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
