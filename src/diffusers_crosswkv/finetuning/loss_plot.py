"""`loss.png`: how the loss went, as far as `metrics.jsonl` tells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..evaluation.plots import finish, plt

SMOOTHED, RAW, VALIDATION = "#d1495b", "#d9d9d9", "#00798c"
SMOOTHED_PART = 50  # of the run
SHOWN_QUANTILE = 0.995  # of the raw losses: a few spikes shall not flatten the rest


def plot_loss(path: Path, entries: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the loss of every step, smoothed over a fiftieth of the run, and that of validation.

    Args:
        entries: of `metrics.jsonl`; nothing is drawn of losses that are not finite.
        title: of the run.
    """
    steps, losses = columns(entries, "loss")
    at, validation = columns(entries, "validation_loss")
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    if len(steps):
        window = len(steps) // SMOOTHED_PART
        colour = RAW if window > 1 else SMOOTHED
        axes.plot(steps, losses, color=colour, lw=0.8, label="training", marker="." if len(steps) < 30 else None)
        if window > 1:
            axes.plot(steps, smoothed(losses, window), color=SMOOTHED, lw=1.6, label=f"training, mean of {window}")
        top = np.quantile(np.concatenate([losses, validation]), SHOWN_QUANTILE)
        bottom = min(losses.min(), *validation) if len(validation) else losses.min()
        room = 0.08 * (top - bottom) or 1.0
        axes.set_ylim(max(0.0, bottom - room), top + room)
    if len(at):
        axes.plot(at, validation, color=VALIDATION, lw=1.4, marker="o", ms=4, label="held-out examples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    finish(figure, path)


def columns(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], dtype=float)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and those before it, `window` in all."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
