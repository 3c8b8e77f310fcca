"""Files that are written whole or not at all, and folders that are nobody else's."""

import json
import os
from pathlib import Path


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


def holds_something(folder: Path) -> bool:
    """Whether `folder` is a file, or a folder with anything in it."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
