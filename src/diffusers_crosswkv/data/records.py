"""Captioned images before any geometry: what every source of data gives."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Size = tuple[int, int]  # (height, width)
Finding = tuple[str, str]  # name and reason


class MissingCaption(Exception):  # noqa: N818, a finding about data, not an error of the program
    """A row that says nothing of its image; the message says why."""


@dataclass(frozen=True)
class Record:
    """One image file and its captions.

    Args:
        name: for people.
        identity: changes whenever the file's bytes can have changed.
        caption: one of the record's wordings, drawn from a generator.
        open: the image file's bytes; may raise OSError.
    """

    name: str
    identity: str
    caption: Callable[[random.Random], str] = field(repr=False)
    open: Callable[[], BinaryIO] = field(repr=False)


class Records(Protocol):
    """Records by number, each with a caption; what had none is in `findings`."""

    @property
    def findings(self) -> list[Finding]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Without reading the record; the same one in every run."""
        ...

    def key(self, index: int) -> str:
        """Without reading the image: changes whenever its bytes can have changed. What sizes are remembered by."""
        ...

    def record(self, index: int) -> Record: ...


@dataclass(frozen=True)
class Wordings:
    """Captions of one image, of which one is drawn at a time."""

    texts: tuple[str, ...]

    def __call__(self, rng: random.Random) -> str:
        return self.texts[0] if len(self.texts) == 1 else rng.choice(self.texts)


def as_texts(value: Any, where: str) -> tuple[str, ...]:
    """The captions in one field: a string or a list of strings, without the empty ones.

    Raises:
        ValueError: the field holds something else.
    """
    if value is None or value != value:  # None, or the NaN of a table
        return ()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, Sequence):
        return tuple(text for part in value for text in as_texts(part, where))
    raise ValueError(
        f"A caption must be a string or a list of strings, but {where} holds {value!r}; "
        "name another `caption_column`, or a builder of captions (`captions`)."
    )


def too_many_bad(bad: int, total: int, most: float) -> bool:
    """Whether the share of bad images is above `most`; of a few images, one may be, unless `most` is 0."""
    return bad > (max(1, most * total) if most else 0)


def digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits that stand for the parts."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", errors="surrogateescape") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def file_identity(path: Path) -> str:
    """A file's place, size and time."""
    stat = path.stat()
    return f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"


def open_file(path: Path) -> BinaryIO:
    return path.open("rb")
