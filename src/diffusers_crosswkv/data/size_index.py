"""The sizes of all images of a data set, read from their headers once and remembered."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from ..files import write_json
from .examples import BrokenImage
from .images import read_size, reason
from .records import Finding, Records, Size, digest

THREADS = 8
CHUNK = 64  # images per task of a thread


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "diffusers_crosswkv")


def read_sizes(
    records: Records, cache_dir: Path, source: str, progress: bool
) -> tuple[dict[int, Size], list[Finding]]:
    """(height, width) by number of the record, without those whose header cannot be read, and the reasons for these.

    Sizes are kept in a file of `cache_dir` named after `source`, by the records' keys: only what is new or changed is
    read again, and what could not be read.
    """
    path = cache_dir / "sizes" / f"{digest(source)}.json"
    known = load_known(path)
    keys = [digest(records.key(i)) for i in range(len(records))]
    new = [i for i, key in enumerate(keys) if key not in known]
    findings = []
    for i, found in zip(new, headers(records, new, progress), strict=True):
        if isinstance(found, str):
            findings.append((records.name(i), found))
        else:
            known[keys[i]] = found
    if len(findings) < len(new):
        write_json(path, {key: known[key] for key in keys if key in known})
    return {i: known[key] for i, key in enumerate(keys) if key in known}, findings


def load_known(path: Path) -> dict[str, Size]:
    """What an earlier run found; a file that is damaged is nothing but forgotten."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {key: (height, width) for key, (height, width) in stored.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def headers(records: Records, indices: list[int], progress: bool) -> Iterator[Size | str]:
    """Sizes or reasons, in order."""

    def read(chunk: list[int]) -> list[Size | str]:
        return [size_or_reason(records, i) for i in chunk]

    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    bar = tqdm(total=len(indices), desc="Reading sizes", unit="image", disable=not progress or not indices)
    with ThreadPoolExecutor(THREADS) as threads, bar:
        for found in threads.map(read, chunks):
            bar.update(len(found))
            yield from found


def size_or_reason(records: Records, index: int) -> Size | str:
    try:
        with records.record(index).open() as file:
            return read_size(file)
    except BrokenImage as error:
        return str(error)
    except OSError as error:
        return reason(error)
