"""Markdown tables of means."""

from ..evaluation.alignment import Mean
from ..evaluation.tables import NOT_RUN


def percent(mean: Mean | None, interval: bool = True) -> str:
    """`61.2 (58.0 to 64.1)`: a mean in percent with its 95 % interval."""
    if mean is None:
        return NOT_RUN
    values = [f"{100 * x:.1f}" for x in (mean.mean, mean.low, mean.high)]
    return f"{values[0]} ({values[1]} to {values[2]})" if interval else values[0]
