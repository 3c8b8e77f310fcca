"""Rows of a data set of the `datasets` library: from the Hub, saved on disk, or parquet files."""

import importlib
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .caption_builders import CaptionBuilders, Columns
from .records import Finding, MissingCaption, Record, Wordings, digest, file_identity, open_file

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "pixel_values", "images")
SCAN_ROWS = 10_000  # rows of captions that are looked at together


def import_datasets() -> Any:
    """The library, imported when it is needed.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            "Data sets of the Hub, parquet files and streams must have the library `datasets`, which is not "
            'installed; run `pip install "diffusers-crosswkv[training]"`.'
        ) from error


def read_rows(kind: str, split: str, streaming: bool = False, **arguments: Any) -> Any:
    """`load_dataset`, with one split chosen.

    Raises:
        ValueError: there is no such data set or split, or it cannot be read.
    """
    datasets = import_datasets()
    try:
        if kind == "disk":
            found = datasets.load_from_disk(arguments["path"])
            found = choose_split(found, split) if isinstance(found, datasets.DatasetDict) else found
            return found.to_iterable_dataset(num_shards=max(1, len(found.cache_files))) if streaming else found
        return datasets.load_dataset(kind, split=split, streaming=streaming, **arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        what = arguments.get("path") or arguments.get("data_files") or kind
        raise ValueError(
            f"`data` must be a file or folder that is there, or a data set that can be read, but {what!r} (split "
            f"{split!r}) cannot: {cause}"
        ) from error


def choose_split(splits: Mapping[str, Any], split: str) -> Any:
    if split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)}, got {split!r}")
    return splits[split]


def columns_of(dataset: Any, where: str) -> tuple[Columns, list[str]]:
    """All columns, and those that the library knows as images."""
    features = dataset.features or {}
    classes = {name: x.names for name, x in features.items() if type(x).__name__ == "ClassLabel"}
    images = [name for name, x in features.items() if type(x).__name__ == "Image"]
    names = list(features or dataset.column_names or next(iter(dataset), {}))
    return Columns(names, classes, where), images


def choose_image_column(columns: Columns, images: list[str], asked: str | None) -> str:
    usual = (*(images if len(images) == 1 else ()), *IMAGE_COLUMNS)
    return columns.choose(asked, usual, "image_column", "images")


class DatasetRows:
    """Rows of a map-style data set, each with an image (encoded bytes or a path) and captions.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(self, dataset: Any, where: str, image_column: str | None, builders: CaptionBuilders):
        columns, images = columns_of(dataset, where)
        self._where = where
        self._column = choose_image_column(columns, images, image_column)
        self._captions = builders.for_columns(columns.names, columns.class_names, where)
        needed = [self._column, *self._captions.columns]
        self._rows = undecoded(dataset.select_columns(needed), [name for name in images if name in needed])
        files = [Path(entry["filename"]) for entry in dataset.cache_files]
        self._source = digest(where, self._column, *map(file_identity, files))
        self.findings: list[Finding] = []
        self._kept = self._find_kept()

    def _find_kept(self) -> list[int]:
        """Rows with a caption. Images are not read for this."""
        if not self._captions.columns:
            return list(range(len(self._rows)))
        rows, kept = self._rows.select_columns(list(self._captions.columns)), []
        for start in range(0, len(rows), SCAN_ROWS):
            batch = rows[start : start + SCAN_ROWS]
            for i, values in enumerate(zip(*batch.values(), strict=True), start):
                reason = self._reason(dict(zip(batch, values, strict=True)))
                if reason is None:
                    kept.append(i)
                else:
                    self.findings.append((self._row_name(i), reason))
        return kept

    def _reason(self, row: Mapping[str, Any]) -> str | None:
        try:
            self._captions(row)
        except MissingCaption as error:
            return str(error)
        return None

    def _row_name(self, row: int) -> str:
        return f"{self._where}[{row}]"

    def __len__(self) -> int:
        return len(self._kept)

    def name(self, index: int) -> str:
        return self._row_name(self._kept[index])

    def key(self, index: int) -> str:
        return f"{self._source}[{self._kept[index]}]"

    def record(self, index: int) -> Record:
        row = self._rows[self._kept[index]]
        return make_record(self.name(index), row[self._column], self._captions(row))


def undecoded(dataset: Any, images: list[str]) -> Any:
    """Image columns as `{"bytes", "path"}`."""
    image = import_datasets().Image(decode=False)
    for name in images:
        dataset = dataset.cast_column(name, image)
    return dataset


def make_record(name: str, image: Any, texts: tuple[str, ...]) -> Record:
    """A record of an image in a row: bytes, a path, or a mapping with one of them."""
    content = image.get("bytes") if isinstance(image, Mapping) else image
    path = image.get("path") if isinstance(image, Mapping) else None
    if isinstance(content, str):
        content, path = None, content
    if content is None and path and Path(path).is_file():
        file = Path(path)
        return Record(name, file_identity(file), Wordings(texts), partial(open_file, file))
    if content is None:
        return Record(name, name, Wordings(texts), partial(no_image, path))
    return Record(name, digest(content), Wordings(texts), partial(io.BytesIO, content))


def no_image(path: str | None) -> Any:
    raise FileNotFoundError(f"{path} is not there" if path else "the row has no image")
