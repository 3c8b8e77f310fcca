"""Tables of captions and labels that lie in a folder of images."""

import csv
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .folders import walk_folders

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN = "file_name"
CELEBA_TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
LABEL = "label"
FOLDER = "folder"

Row = dict[str, Any]


class FolderTables:
    """The rows of all tables below `root`, by image.

    Args:
        names: of all images relative to `root`, by their normal form (NFC).

    Raises:
        ValueError: a table cannot be read, or names no files.
    """

    def __init__(self, root: Path, names: Mapping[str, str]):
        self.missing: list[str] = []
        self._rows: dict[str, list[Row]] = {}
        columns: dict[str, None] = {}
        for path in tables_below(root):
            base = PurePosixPath(path.parent.relative_to(root).as_posix())
            for row in read_table(path):
                columns.update(dict.fromkeys(row))
                name = normal_path(base / str(row[FILE_COLUMN]).replace("\\", "/"))
                if name in names:
                    self._rows.setdefault(names[name], []).append(row)
                else:
                    self.missing.append(name)
        self._celeba = read_celeba(root)
        columns.update(dict.fromkeys(next(iter(self._celeba.values()), {})))
        columns.pop(FILE_COLUMN, None)
        self.columns = [*columns, *({LABEL: None} if any("/" in name for name in names) else {})]

    def rows(self, name: str) -> list[Row]:
        """Of an image; those of a class folder or of CelebA's table have no caption of their own."""
        found = self._rows.get(name, [])
        return [{**self.bare_row(name), **row} for row in found]

    def bare_row(self, name: str) -> Row:
        """What is known of an image without a row of its own."""
        path = PurePosixPath(name)
        row: Row = {LABEL: path.parent.name} if path.parent.name else {}
        return {**row, **self._celeba.get(path.name, {})}


def tables_below(root: Path) -> Iterator[Path]:
    for folder, files in walk_folders(root):
        yield from (folder / name for name in METADATA if name in files)


def read_table(path: Path) -> Iterator[Row]:
    """Rows of `metadata.jsonl` or `metadata.csv`.

    Raises:
        ValueError: a line is no JSON object, a quote is not closed, there is no column `file_name`, or the text is not
            UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv_lines(file) if path.suffix == ".csv" else json_lines(file)
            for number, row in lines:
                if not isinstance(row, dict) or not row.get(FILE_COLUMN):
                    raise ValueError(f"line {number} has no `{FILE_COLUMN}`")
                if None in row:
                    raise ValueError(
                        f"line {number} has more fields than the header (a caption with commas needs quotes)"
                    )
                yield row
    except ValueError as error:
        raise ValueError(
            f"{path} must be UTF-8 with a `{FILE_COLUMN}` in every row, but {error}; mend it, or move it away."
        ) from error


def csv_lines(file) -> Iterator[tuple[int, Row]]:
    """Rows with the number of the line where each ends."""
    reader = csv.DictReader(file, strict=True)  # else all that follows a quote that stays open is one caption
    before = 0
    try:
        if reader.fieldnames:  # reads the header
            before = reader.line_num
        for row in reader:
            before = reader.reader.line_num  # `reader.line_num` is behind where lines are empty
            yield before, row
    except csv.Error as error:
        raise ValueError(
            f"in the row after line {before} quotes do not match: {error} (a caption that begins with a quote needs "
            "one at its end, and two for each inside)"
        ) from error


def json_lines(file) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error


def read_celeba(root: Path) -> dict[str, Row]:
    """CelebA's attributes by file name, from `list_attr_celeba` in `root`, `root`/Anno, or the same beside `root`."""
    places = [folder / name for folder in (root, root.parent) for name in ("", "Anno")]
    path = next((place / name for place in places for name in CELEBA_TABLES if (place / name).is_file()), None)
    if path is None:
        return {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if path.suffix == ".csv":
        table = list(csv.reader(lines))
        header, rows = table[0][1:], table[1:]
    else:  # a count, the attributes, then lines of a name and numbers
        header, rows = lines[1].split(), [line.split() for line in lines[2:]]
    return {row[0]: dict(zip(header, row[1:], strict=True)) for row in rows if row}


def normal_path(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(os.path.normpath(path)).as_posix())
