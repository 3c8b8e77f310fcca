"""A folder of images with captions beside them, the way people keep their own data."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .caption_builders import CaptionBuilders, RowCaptions
from .folder_tables import FolderTables, Row
from .folders import walk_folders
from .records import Finding, MissingCaption, Record, Wordings, as_texts, file_identity, open_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")


class ImageFolder:
    """All images below a folder, in the order of their paths.

    Captions come from `metadata.jsonl` or `metadata.csv` of the image's folder or one above it (`file_name` is
    relative to the table; several rows for one image are several wordings), else from a `.txt` or `.caption` with the
    image's name (each line that is not empty is one wording). Builders of captions also see tables of the known data
    sets and, as `label`, the name of the folder an image is in.

    Links to folders are followed. Files and folders whose names start with a dot are not looked at.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no images.
        ValueError: a table cannot be read, or has no column of captions.
    """

    def __init__(self, folder: str | os.PathLike, builders: CaptionBuilders):
        self.root = Path(folder).expanduser().resolve()
        if not self.root.is_dir():
            raise FileNotFoundError(f"`data` must be a folder that is there, got {str(folder)!r}.")
        paths = sorted(walk(self.root))
        names = {normal(name): name for name in paths}
        if not names:
            raise FileNotFoundError(
                f"`data` must hold images ({', '.join(IMAGE_SUFFIXES)}), but there are none in {self.root}."
            )
        self.findings: list[Finding] = []
        tables = FolderTables(self.root, names)
        captions = builders.for_columns(tables.columns, {}, str(self.root))
        self._files: list[tuple[str, str, tuple[str, ...]]] = []  # name, identity, captions
        for name in paths:
            texts = self._captions(name, tables, captions)
            if texts is not None:
                self._files.append((name, file_identity(self.root / name), texts))
        self.findings += [(name, "is named in a table of captions, but is not there") for name in tables.missing]

    def _captions(self, name: str, tables: FolderTables, captions: RowCaptions) -> tuple[str, ...] | None:
        """All wordings for an image; None, and a finding, if there are none."""
        rows = tables.rows(name)
        try:
            if captions.from_text and not rows:
                return self._lines_beside(name)
            return captions_of_rows(rows or [tables.bare_row(name)], captions)
        except MissingCaption as error:
            self.findings.append((name, str(error)))
        return None

    def _lines_beside(self, name: str) -> tuple[str, ...]:
        for suffix in CAPTION_SUFFIXES:
            path = (self.root / name).with_suffix(suffix)
            try:
                lines = as_texts(path.read_text(encoding="utf-8-sig").splitlines(), path.name)
            except FileNotFoundError:
                continue
            except UnicodeDecodeError as error:
                raise MissingCaption(f"has a caption file that is not UTF-8 ({path.name})") from error
            if not lines:
                raise MissingCaption("has an empty caption")
            return lines
        raise MissingCaption("has no caption: no row in a table, and no text file beside it")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index][0]

    def key(self, index: int) -> str:
        return self._files[index][1]

    def record(self, index: int) -> Record:
        name, identity, texts = self._files[index]
        return Record(name, identity, Wordings(texts), partial(open_file, self.root / name))


def captions_of_rows(rows: Sequence[Row], captions: RowCaptions) -> tuple[str, ...]:
    """All wordings for an image; rows without any are left out.

    Raises:
        MissingCaption: no row has any.
    """
    texts: list[str] = []
    missing = None
    for row in rows:
        try:
            texts += captions(row)
        except MissingCaption as error:
            missing = error
    if missing is not None and not texts:
        raise missing
    return tuple(texts)


def walk(root: Path) -> Iterator[str]:
    """Image files below `root`, relative to it, with forward slashes."""
    for folder, files in walk_folders(root):
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield (folder / name).relative_to(root).as_posix()


def normal(name: str) -> str:
    """One spelling for a name that file systems and editors write with composed or separate accents."""
    return unicodedata.normalize("NFC", name)
