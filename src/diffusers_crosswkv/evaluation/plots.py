"""What plots of all benchmarks have in common, and curves of costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import ticker

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Curve(NamedTuple):
    """`(x, median, 25 %, 75 %)` at each point, and how the line is drawn."""

    points: Sequence[tuple[float, float, float, float]]
    style: Mapping[str, Any]


def cost_curves(path: Path, title: str, xlabel: str, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    """Milliseconds with their quartiles, both axes logarithmic; one panel per heading, one curve per label."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.2), squeeze=False, sharey=True)
    for axes, (heading, curves) in zip(all_axes[0], panels.items(), strict=True):
        for label, curve in curves.items():
            x, median, low, high = zip(*sorted(curve.points), strict=True)
            (line,) = axes.plot(x, median, marker="o", ms=3.5, label=label, **curve.style)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
        ticks = sorted({point[0] for curve in curves.values() for point in curve.points})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45)
        axes.minorticks_off()
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.25, lw=0.5)
        axes.legend(frameon=False, fontsize=8)
    all_axes[0][0].set_ylabel("time, ms (median, quartiles shaded)")
    figure.suptitle(title, fontsize=10)
    finish(figure, path)


def finish(figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
