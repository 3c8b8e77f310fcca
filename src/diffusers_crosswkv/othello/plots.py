"""Plots of the Othello benchmark, and boards with what a model expects on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.patches import Circle, Rectangle

from ..evaluation.plots import finish, plt

COLOURS = {"wkv7": "#d1495b", "softmax": "#444444"}
GREEN, LEGAL = "#7fb894", "#1b3a5c"
FIRST_MARKED = 0.005  # probabilities below are not written on a square


def lines(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Mapping[str, Any]]],
    labels: tuple[str, str],
    marks: Mapping[str, float],
) -> None:
    """`(x, y, style)` by label, and horizontal lines by label."""
    figure, axes = plt.subplots(figsize=(7, 3.8))
    for label, (x, y, style) in curves.items():
        axes.plot(x, y, label=label, **style)
    for (label, height), dashes in zip(marks.items(), (":", "--", "-."), strict=False):
        axes.axhline(height, color="black", ls=dashes, lw=0.8, label=label)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.25, lw=0.5)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    finish(figure, path)


def places(path: Path, readings: Mapping[str, tuple[Mapping[str, Sequence[float]], Mapping[str, Any]]], marks) -> None:
    """Accuracy with its interval (mean, low, high) by place, one line of points per label."""
    names = list(dict.fromkeys(name for of, _ in readings.values() for name in of))
    figure, axes = plt.subplots(figsize=(7, 3.8))
    for label, (of, style) in readings.items():
        found = [(names.index(name), *of[name]) for name in names if name in of]
        x, mean, low, high = zip(*found, strict=True)
        below, above = ([a - b for a, b in zip(*pair, strict=True)] for pair in ((mean, low), (high, mean)))
        axes.errorbar(x, mean, [below, above], label=label, ls="", marker="o", capsize=3, **style)
    for label, height in marks.items():
        axes.axhline(height, color="black", ls=":", lw=0.8, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("discs read right, %")
    axes.grid(alpha=0.25, lw=0.5)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    finish(figure, path)


def boards(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One line of boards per name: discs, legal moves framed, the model's probabilities in percent."""
    columns = max(len(of) for of in rows.values())
    figure, grid = plt.subplots(len(rows), columns, figsize=(3.6 * columns, 3.9 * len(rows)), squeeze=False)
    for line, (name, of) in zip(grid, rows.items(), strict=True):
        for axes, row in zip(line, of, strict=True):
            draw_board(axes, row)
            mass = sum(row["probabilities"][square] for square in row["legal"])
            axes.set_title(f"{name}, move {row['move']}, {row['to_move']}: {100 * mass:.0f} % legal", fontsize=9)
    finish(figure, path)


def draw_board(axes, row: Mapping[str, Any]) -> None:
    for square, probability in enumerate(row["probabilities"]):
        x, y = square % 8, square // 8
        axes.add_patch(Rectangle((x, y), 1, 1, fc=GREEN, ec="white", lw=0.8))
        axes.add_patch(Rectangle((x, y), 1, 1, fc="#f4d35e", alpha=min(3 * probability, 1) ** 0.5, lw=0))
        for colour in ("black", "white"):
            if square in row[colour]:
                axes.add_patch(Circle((x + 0.5, y + 0.5), 0.38, fc=colour, ec="black", lw=0.5))
        if square in row["legal"]:
            axes.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, ec=LEGAL, lw=2))
        if probability >= FIRST_MARKED:
            on_disc = square in row["black"] + row["white"]
            colour = "#d1495b" if on_disc or square not in row["legal"] else "black"
            axes.text(x + 0.5, y + 0.5, f"{100 * probability:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlim(0, 8)
    axes.set_ylim(8, 0)
    axes.set_aspect("equal")
    axes.set_xticks([i + 0.5 for i in range(8)], "abcdefgh")
    axes.set_yticks([i + 0.5 for i in range(8)], range(1, 9))
    axes.tick_params(length=0, labelsize=7)
