"""What a training did, for a person."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..files import write_whole
from ..hub.card import duration

SKIPPED_FILE = "skipped.txt"
NAMED = 3


@dataclass(frozen=True)
class Skipped:
    """Names of images that were left out, by reason."""

    by_reason: dict[str, tuple[str, ...]]

    @staticmethod
    def of(findings: Iterable[tuple[str, str]]) -> "Skipped":
        groups: dict[str, list[str]] = defaultdict(list)
        for name, reason in findings:
            groups[reason].append(name)
        return Skipped({reason: tuple(names) for reason, names in sorted(groups.items(), key=lambda x: -len(x[1]))})

    def __len__(self) -> int:
        return sum(map(len, self.by_reason.values()))

    def lines(self) -> list[str]:
        """One per reason, with the first names."""
        return [
            f"{len(names):,} {reason} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for reason, names in self.by_reason.items()
        ]

    def save(self, folder: Path) -> None:
        """Write all names to `skipped.txt`, if there are any."""
        if len(self):
            rows = [f"{name}\t{reason}\n" for reason, names in self.by_reason.items() for name in names]
            write_whole(folder / SKIPPED_FILE, "".join(rows).encode())


@dataclass(frozen=True)
class FinetuningReport:
    """What was done and where it is.

    Args:
        seconds: that the steps took, over all calls of an interrupted run, without validation.
        result: a pipeline's folder, or the file of a LoRA or a prompt state.
        example: a command that draws with it.
        pictures: of the last validation.
        url: of the repository that it was published in.
    """

    steps: int
    seconds: float
    images_per_second: float
    bad_steps: int
    skipped: Skipped
    result: Path
    example: str
    loss_plot: Path
    pictures: Path | None
    url: str | None

    def __str__(self) -> str:
        lines = [
            f"{self.steps:,} steps in {duration(self.seconds)}, {self.images_per_second:.3g} images/s",
            *([f"{self.bad_steps:,} steps left out: loss or gradient was not finite"] if self.bad_steps else []),
            *([f"{len(self.skipped):,} images left out, all named in {SKIPPED_FILE}:"] if len(self.skipped) else []),
            *(f"  {line}" for line in self.skipped.lines()),
            f"loss: {self.loss_plot}",
            *([f"pictures: {self.pictures}"] if self.pictures else []),
            f"result: {self.result}",
            *([f"published: {self.url}"] if self.url else []),
            f"draw with it: {self.example}",
        ]
        return "\n".join(lines)
