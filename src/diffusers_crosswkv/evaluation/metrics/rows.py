"""The file of an evaluation's figures."""

from pathlib import Path

from ...files import read_json_lines, write_json_lines
from ..kernel_rows import Row

RESULTS = "results.jsonl"
SAME = (  # rows that agree in these are the same measurement, repeated
    "name", "protocol", "samples", "model", "seed", "weights", "prompts", "reference", "reference_size",
    "reference_images", "manifold_images", "subset_size",
)  # fmt: skip


def put_row(path: Path, row: Row) -> None:
    """Add a row to a file, in the place of one that measured the same; written whole."""
    kept = [other for other in read_json_lines(path) if not is_same(other, row)]
    write_json_lines(path, [*kept, row])


def is_same(one: Row, other: Row) -> bool:
    return all(one.get(name) == other.get(name) for name in SAME)
