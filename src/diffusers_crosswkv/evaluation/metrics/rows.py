"""The file of an evaluation's figures."""

import json
from pathlib import Path

from ...files import write_whole
from ..kernel_rows import Row

RESULTS = "results.jsonl"
SAME = (  # rows that agree in these are the same measurement, repeated
    "name", "protocol", "samples", "model", "seed", "weights", "prompts", "reference", "reference_size",
    "reference_images", "manifold_images", "subset_size",
)  # fmt: skip


def put_row(path: Path, row: Row) -> None:
    """Add a row to a file, in the place of one that measured the same; written whole."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [other for other in map(json.loads, lines) if not is_same(other, row)]
    write_whole(path, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [*kept, row]).encode())


def is_same(one: Row, other: Row) -> bool:
    return all(one.get(name) == other.get(name) for name in SAME)
