"""Shards of a data set that is read in order, such as one that is not on this machine."""

import tarfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .caption_builders import CaptionBuilders
from .dataset_rows import choose_image_column, columns_of, make_record
from .examples import BrokenImage
from .images import read_size, reason
from .records import Finding, MissingCaption, Record, Size


@dataclass(frozen=True)
class Row:
    """What stands at one place of a shard: a record and its size, or why there is none."""

    end: int
    """Rows of the shard up to and with this one."""
    record: Record | None
    size: Size
    finding: Finding | None = None


class StreamShards:
    """Rows of an `IterableDataset`, shard by shard.

    Args:
        first_row: rows of the first shard before this one are never read (they are held out).

    Raises:
        ValueError: a column is missing.
    """

    def __init__(self, dataset: Any, where: str, image_column: str | None, builders: CaptionBuilders):
        self._dataset = dataset.decode(False)
        self._where = where
        columns, images = columns_of(self._dataset, where)
        self._column = choose_image_column(columns, images, image_column)
        self._captions = builders.for_columns(columns.names, columns.class_names, where)
        self.count: int = self._dataset.num_shards
        self.first_row = 0

    def rows(self, shard: int, start: int) -> Generator[Row]:
        """From row `start` on. A shard that is damaged ends where it is, and says so."""
        start = max(start, self.first_row if shard == 0 else 0)
        rows = iter(self._dataset.shard(self.count, shard).skip(start))
        end = start
        try:
            for end, row in enumerate(rows, start + 1):
                yield self._read(row, shard, end)
        except tarfile.TarError as error:
            finding = (f"{self._where}[shard {shard}]", f"is damaged after row {end}: {error}")
            yield Row(end, None, (0, 0), finding)
        finally:
            rows.close()

    def first_rows(self, count: int) -> list[Row]:
        """Of the first shard, up to and with the `count`-th that has a record; all if there are fewer."""
        rows: list[Row] = []
        records = 0
        with closing(self.rows(0, 0)) as found:
            while records < count and (row := next(found, None)) is not None:
                rows.append(row)
                records += row.record is not None
        return rows

    def _read(self, row: dict[str, Any], shard: int, end: int) -> Row:
        name = f"{self._where}[shard {shard}, row {end - 1}]"
        if "__key__" in row:  # of WebDataset
            name = f"{str(row.get('__url__', '')).rpartition('/')[2]}/{row['__key__']}"
        try:
            record = make_record(name, row[self._column], self._captions(row))
            with record.open() as file:
                return Row(end, record, read_size(file))
        except (BrokenImage, MissingCaption) as error:
            return Row(end, None, (0, 0), (name, str(error)))
        except OSError as error:
            return Row(end, None, (0, 0), (name, reason(error)))
