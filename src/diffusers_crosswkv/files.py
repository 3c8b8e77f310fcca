"""Files that are written whole or not at all, and folders that are nobody else's."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # several processes may write the same
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    """Write `value` beside `path`, then rename."""
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode())


def write_json_lines(path: Path, values: Iterable[object]) -> None:
    """Write a line per value beside `path`, then rename."""
    write_whole(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def read_json_lines(path: Path) -> list[Any]:
    """The value of each line; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def holds_something(folder: Path) -> bool:
    """Whether `folder` is a file, or a folder with anything in it."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
