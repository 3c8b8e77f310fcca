"""Examples from records that can be read in any order."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .buckets import Buckets, nearest_shape
from .config import HOLDOUT
from .examples import Example
from .geometry import Geometry
from .order import Batch, arrange, batches_per_block, epoch_indices
from .records import Finding, Records, Size, digest


class RecordSource:
    """An [`ExampleSource`] whose examples are a function of (seed, step, slot, attempt), and of the records.

    Args:
        kept: numbers of the records to train on.
        sizes: of each of these.
        holdout: examples that training never sees.
        findings: what was left out.
        remarks: what is used, but should be known: images that are smaller than they will be.
    """

    def __init__(
        self,
        records: Records,
        kept: Sequence[int],
        sizes: Sequence[Size],
        buckets: Buckets,
        geometry: Geometry,
        batch_size: int,
        seed: int,
        holdout: Sequence[Example] = (),
        findings: Sequence[Finding] = (),
        remarks: Sequence[Finding] = (),
    ):
        self.holdout = list(holdout)
        self.remarks = list(remarks)
        self._findings = list(findings)
        self._records, self._kept, self._sizes = records, kept, sizes
        self._buckets, self._geometry = buckets, geometry
        self._bucket_of = [buckets.nearest(size) for size in sizes]
        self._batch_size, self._seed = batch_size, seed
        self._block = batches_per_block(len(kept), batch_size)
        self._batches = lru_cache(maxsize=4)(self._arrange)

    @property
    def examples_per_epoch(self) -> int:
        return len(self._kept)

    def images_per_bucket(self) -> dict[Size, int]:
        """How many images are nearest to each size (height, width); some are used in a size beside it."""
        counts = Counter(self._bucket_of)
        return {self._buckets.sizes[bucket]: counts[bucket] for bucket in sorted(counts)}

    def example(self, step: int, slot: int, attempt: int = 0) -> Example:
        block, number = divmod(step, self._block)
        bucket, indices = self._batches(block)[number]
        index = indices[slot]
        rng = random.Random(f"{self._seed}/{step}/{slot}/{attempt}")
        size = self._buckets.sizes[bucket]
        if attempt:
            index = nearest_shape(self._sizes, index, size, rng)
        return self._geometry.make_example(self._records.record(self._kept[index]), size, rng)

    def _arrange(self, block: int) -> list[Batch]:
        """The batches of a block: buckets, and numbers of kept records."""
        count = self._block * self._batch_size
        sequence = epoch_indices(len(self._kept), block * count, count, self._seed)
        rng = random.Random(f"{self._seed}/block {block}")
        batches = arrange([self._bucket_of[i] for i in sequence], self._batch_size, rng)
        return [(bucket, [sequence[i] for i in positions]) for bucket, positions in batches]

    def state_dict(self, step: int) -> dict[str, Any]:
        """Nothing has to be remembered but which records these are."""
        return {"records": len(self._kept), "names": self._names_digest()}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Raises ValueError if the records are others than they were: the order would be another one."""
        now = self.state_dict(0)
        if values != now:
            raise ValueError(
                "A run that goes on must find the images it began with (names and shapes), but there were "
                f"{values.get('records')} and now there are {now['records']}; restore them, set {HOLDOUT} and "
                "`max_examples`, which choose among them, as they were, or start a new run."
            )

    def _names_digest(self) -> str:
        names = (self._records.name(i) for i in self._kept)
        return digest(*(f"{name} {bucket}" for name, bucket in zip(names, self._bucket_of, strict=True)))

    def findings(self) -> list[Finding]:
        return list(self._findings)
