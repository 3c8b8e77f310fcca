"""Plots of states: one line per layer, panels in rows and columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..evaluation.plots import finish, plt

Curves = Mapping[str, Sequence[tuple[float, float]]]  # points (x, y) by layer


def state_curves(path: Path, rows: Mapping[str, Mapping[str, Curves]], xlabel: str, log: bool = False) -> None:
    """A row of panels per outer key, a panel per inner key, whose curves run from the first layer to the last."""
    columns = max(len(panels) for panels in rows.values())
    figure, grid = plt.subplots(len(rows), columns, figsize=(5.6 * columns, 2.9 * len(rows)), squeeze=False)
    for line, (heading, panels) in zip(grid, rows.items(), strict=True):
        for axes, (name, curves) in zip(line, panels.items(), strict=True):
            colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(curves)))
            for number, (points, colour) in enumerate(zip(curves.values(), colours, strict=True), start=1):
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, lw=1.2, marker="o" if len(x) < 30 else None, ms=2.5, label=str(number))
            if log:
                axes.set_xscale("log", base=4)
                axes.set_xticks(x, [f"{value:g}" for value in x])
                axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_title(f"{heading}: {name}", fontsize=10)
            axes.set_xlabel(xlabel)
            axes.grid(alpha=0.25, lw=0.5)
    grid[0][0].legend(frameon=False, fontsize=7, ncols=2, title="layer", title_fontsize=7)
    finish(figure, path)
