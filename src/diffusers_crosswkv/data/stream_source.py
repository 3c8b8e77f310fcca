"""Examples from a data set that is read in order, and not again from its beginning when a run goes on."""

import math
import random
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Any

from .buckets import Buckets, nearest_shape
from .examples import Example
from .geometry import Geometry
from .order import Batch, arrange
from .records import Finding, Record, Size
from .stream_shards import Row, StreamShards

STEPS_AHEAD = 16  # for which a loop may ask before it is done with earlier ones


@dataclass(frozen=True)
class Cursor:
    """A place in a stream."""

    epoch: int = 0
    shards: int = 0  # of the stream's own that are done in this epoch
    row: int = 0  # rows read of the next one


@dataclass(frozen=True)
class Block:
    records: list[tuple[Record, Size]]
    batches: list[Batch]


class Stream:
    """Every `count`-th of the shards, in a new order every epoch, cut into blocks of records.

    Args:
        arguments of the class docstring of [`StreamSource`], and:
        number, count: which of the streams this is.
        slots: of each batch that are filled from this stream.
        steps: batches of a block.
    """

    def __init__(
        self, shards: StreamShards, buckets: Buckets, seed: int, number: int, count: int, slots: int, steps: int
    ):
        self._shards, self._buckets, self._seed = shards, buckets, seed
        self._number, self._count, self._slots, self._steps = number, count, slots, steps
        self._blocks: dict[int, Block] = {}
        self._in_memory = 3 + STEPS_AHEAD // steps  # the one in use, the next, and one that is read ahead
        self._lock = threading.Lock()
        self._at: tuple[Cursor, Generator[tuple[Row, Cursor]]] | None = None
        self.starts = {0: Cursor()}
        self.findings: dict[Finding, None] = {}

    def block(self, number: int) -> Block:
        """Block `number`, read from the nearest place that is known before it."""
        found = self._blocks.get(number)
        if found is not None:
            return found
        with self._lock:
            while number not in self._blocks:
                nearest = max(n for n in self.starts if n <= number)
                self._blocks[nearest] = self._read(nearest)
                for old in sorted(self._blocks)[: -self._in_memory]:
                    if old != number:
                        del self._blocks[old]
            return self._blocks[number]

    def _read(self, number: int) -> Block:
        cursor = self.starts[number]
        if self._at is None or self._at[0] != cursor:
            self._close_rows()
            self._at = (cursor, self._rows(cursor))
        rows, self._at = self._at[1], None  # what fails on the way is read anew
        records: list[tuple[Record, Size]] = []
        while len(records) < self._slots * self._steps:
            row, cursor = next(rows)
            if row.record is not None:
                records.append((row.record, row.size))
            elif row.finding is not None:
                self.findings[row.finding] = None
        self._at = (cursor, rows)
        self.starts[number + 1] = cursor
        rng = random.Random(f"{self._seed}/stream {self._number}/block {number}")
        rng.shuffle(records)
        return Block(records, arrange([self._buckets.nearest(size) for _, size in records], self._slots, rng))

    def close(self) -> None:
        """Let go of the shard that is open."""
        with self._lock:
            self._close_rows()

    def _close_rows(self) -> None:
        if self._at is not None:
            self._at[1].close()
        self._at = None

    def _rows(self, cursor: Cursor) -> Generator[tuple[Row, Cursor]]:
        """Endless; each row with the place behind it."""
        usable = True
        while True:
            if cursor == Cursor(cursor.epoch):
                if not usable:
                    raise ValueError(self._nothing_usable())
                usable = False
            own = shard_order(self._shards.count, cursor.epoch, self._seed)[self._number :: self._count]
            for shard in own[cursor.shards :]:
                with closing(self._shards.rows(shard, cursor.row)) as rows:
                    for row in rows:
                        cursor = Cursor(cursor.epoch, cursor.shards, row.end)
                        usable = usable or row.record is not None
                        yield row, cursor
                cursor = Cursor(cursor.epoch, cursor.shards + 1)
            cursor = Cursor(cursor.epoch + 1)

    def _nothing_usable(self) -> str:
        why = "; ".join(f"{name} {reason}" for name, reason in list(self.findings)[:3])
        return (
            "A stream must hold images with captions, but in a whole epoch there was none"
            f"{f' ({why})' if why else ''}; mend the files, or take other settings."
        )


class StreamSource:
    """An [`ExampleSource`] over shards that are read in order, a block of examples at a time.

    Slot j of every batch is filled from stream j % V, where V is the greatest common divisor of the batch size and
    the number of shards: a process reads only the streams of its slots, and what it sees does not depend on how many
    processes there are. With several buckets, all slots must agree on a size, and V is 1.

    Args:
        block_size: examples that are read ahead and mixed, in whole batches, at least one.
        holdout: examples that training never sees.
        findings: what was left out while these were looked for.
    """

    examples_per_epoch = None

    def __init__(
        self,
        shards: StreamShards,
        buckets: Buckets,
        geometry: Geometry,
        batch_size: int,
        seed: int,
        block_size: int,
        holdout: Sequence[Example] = (),
        findings: Sequence[Finding] = (),
    ):
        self.holdout = list(holdout)
        self.remarks: list[Finding] = []
        self._findings = list(findings)
        self._buckets, self._geometry, self._seed = buckets, geometry, seed
        self._steps = max(1, block_size // batch_size)
        self.shards = shards
        count = 1 if len(buckets.sizes) > 1 else math.gcd(batch_size, shards.count)
        self._streams = [
            Stream(shards, buckets, seed, number, count, batch_size // count, self._steps) for number in range(count)
        ]
        self._ahead = ThreadPoolExecutor(1)
        self._asked_ahead: set[tuple[int, int]] = set()

    def example(self, step: int, slot: int, attempt: int = 0) -> Example:
        number, batch = divmod(step, self._steps)
        place, stream = divmod(slot, len(self._streams))
        block = self._streams[stream].block(number)
        self._read_ahead(stream, number + 1)
        bucket, positions = block.batches[batch]
        size = self._buckets.sizes[bucket]
        index = positions[place]
        rng = random.Random(f"{self._seed}/{step}/{slot}/{attempt}")
        if attempt:
            index = nearest_shape([size for _, size in block.records], index, size, rng)
        return self._geometry.make_example(block.records[index][0], size, rng)

    def _read_ahead(self, stream: int, block: int) -> None:
        """Read the next block while this one is used; an error comes up again when the block is asked for."""
        if (stream, block) not in self._asked_ahead:
            self._asked_ahead.add((stream, block))
            self._ahead.submit(self._streams[stream].block, block)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Where the block of `step` begins, in the streams that this process reads."""
        block = step // self._steps
        starts = {str(i): [block, *astuple(x.starts[block])] for i, x in enumerate(self._streams) if block in x.starts}
        return {"shards": self.shards.count, "streams": starts}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on from there; other processes know other streams, so give it the values of each.

        A stream that none of them names is read from its beginning, which takes longer.

        Raises:
            ValueError: the data set has another number of shards than it had.
        """
        if values.get("shards") != self.shards.count:
            raise ValueError(
                f"A run that goes on must find the {values.get('shards')} shards it began with, got "
                f"{self.shards.count}; restore them, or start a new run."
            )
        for name, (block, *cursor) in values["streams"].items():
            self._streams[int(name)].starts[block] = Cursor(*cursor)

    def close(self) -> None:
        """Stop reading ahead and let go of open shards. Examples may be asked for again afterwards."""
        self._ahead.shutdown(cancel_futures=True)
        self._ahead = ThreadPoolExecutor(1)
        for stream in self._streams:
            stream.close()

    def findings(self) -> list[Finding]:
        """What was left out so far, by this process."""
        return list(dict.fromkeys([*self._findings, *(x for stream in self._streams for x in list(stream.findings))]))


def shard_order(count: int, epoch: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/shards of epoch {epoch}").shuffle(order)
    return order
