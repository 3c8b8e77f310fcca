"""Files that are written whole or not at all, and folders that are nobody else's."""

import json
from pathlib import Path


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    """Write `value` beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    temporary.replace(path)


def holds_something(folder: Path) -> bool:
    """Whether `folder` is a file, or a folder with anything in it."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
