"""What training asks of its data: the example of any place in any step's batch, always the same one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch


class BrokenImage(Exception):  # noqa: N818, a finding about data, not an error of the program
    """An image that cannot be read; the message says why."""


@dataclass(frozen=True)
class Example:
    """One image and one caption, not decoded yet.

    Args:
        name: for people: a path, a member of a shard, or a row.
        caption: never empty unless the data set has no captions at all.
        identity: changes whenever the pixels can have changed: file, its size and time or digest, crop, resize, flip.
            What caches are keyed by.
        size: (height, width) of the pixels; equal for all examples of one batch.
        pixels: decodes, crops and resizes: `[C, height, width]` in [-1, 1]. Raises [`BrokenImage`].
    """

    name: str
    caption: str
    identity: str
    size: tuple[int, int]
    pixels: Callable[[], torch.Tensor] = field(repr=False)


@runtime_checkable
class ExampleSource(Protocol):
    """Examples by place, so that a resumed run, or one with another number of processes, sees what it would have seen.

    Steps are asked for in rising order; all slots of a step, or some of them, in any order and from several threads.
    """

    @property
    def examples_per_epoch(self) -> int | None:
        """None for a stream that has not been counted."""
        ...

    def example(self, step: int, slot: int, attempt: int = 0) -> Example:
        """The example in place `slot` of the batch of `step`; another one of the same size for each further `attempt`.

        A function of the arguments and of what the source was made with (seed and batch size among it).
        """
        ...

    def state_dict(self, step: int) -> dict[str, Any]:
        """JSON values from which `load_state_dict` goes on at `step` without reading all that came before."""
        ...

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; with several processes, the values of each of them, one after the other."""
        ...

    def findings(self) -> list[tuple[str, str]]:
        """Names and reasons of what was left out before any example was asked for: files without a caption, ...

        A stream, which cannot know beforehand, lists what it has left out so far.
        """
        ...
