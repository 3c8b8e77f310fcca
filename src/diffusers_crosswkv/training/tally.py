"""What went wrong without ending the run: counted, kept over interruptions, told at the end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..data.records import too_many_bad

NAMED_AT_MOST = 1000
STEPS = ("bad_steps", "bad_in_a_row")
SHARE_COUNTS_FROM = 100  # images: a share of fewer says little


@dataclass
class Tally:
    """Counts of one process.

    Args:
        seen: places that were filled.
        broken: images drawn for them that could not be read; one image counts each time.
        reasons: name and reason of each of those images, the first `NAMED_AT_MOST`.
        bad_steps: steps without a finite loss and gradient.
        bad_in_a_row: of those, the latest ones without a good one between.
    """

    seen: int = 0
    broken: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    bad_steps: int = 0
    bad_in_a_row: int = 0

    def count_images(self, broken_of_places: Iterable[Iterable[tuple[str, str]]]) -> None:
        for broken in broken_of_places:
            self.seen += 1
            for name, reason in broken:
                self.broken += 1
                if len(self.reasons) < NAMED_AT_MOST:
                    self.reasons[name] = reason

    def count_step(self, good: bool) -> None:
        self.bad_steps += not good
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seen", "broken", "reasons", *STEPS)}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        for name in ("seen", "broken", *STEPS):
            setattr(self, name, int(values[name]))
        self.reasons = dict(values["reasons"])


def add_up(tallies: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The state of all processes' tallies as one; what is counted of steps is the same in all."""
    states = list(tallies)
    reasons = {name: reason for state in states for name, reason in state["reasons"].items()}
    totals = {name: sum(state[name] for state in states) for name in ("seen", "broken")}
    of_steps = {name: states[0][name] for name in STEPS}
    return totals | of_steps | {"reasons": dict(list(reasons.items())[:NAMED_AT_MOST])}


def too_many_broken(seen: float, broken: float, most: float) -> bool:
    """Whether the share of draws of images that cannot be read is above `most`: a cheap look before a close one."""
    return broken > most * max(seen, SHARE_COUNTS_FROM)


def broken_images(tally: dict[str, Any], images: int | None, most: float) -> str | None:
    """What the person has to know if too many different images cannot be read, else None.

    Args:
        tally: of all processes, from [`add_up`].
        images: of the data set, None if nobody has counted them.
    """
    broken, total = different_images(tally, images)
    if not too_many_bad(broken, total, most):
        return None
    kinds = Counter(tally["reasons"].values()).most_common(3)
    name, reason = next(iter(tally["reasons"].items()))
    return (
        f"At most {most:.0%} of the images may be broken (`max_bad_images`), but {broken} of {total} "
        f"are, such as {name}: {reason}. Most frequent: {', '.join(f'{kind} ({count})' for kind, count in kinds)}. "
        "Mend or remove them, or allow more."
    )


def different_images(tally: dict[str, Any], images: int | None) -> tuple[int, int]:
    """How many images could not be read, and of how many; draws of them once there are too many to name."""
    named, drawn = len(tally["reasons"]), tally["seen"] + tally["broken"]
    if named >= NAMED_AT_MOST:
        return tally["broken"], drawn
    return named, drawn if images is None else min(drawn, images)
