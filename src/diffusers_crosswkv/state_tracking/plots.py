"""Accuracy against length, one panel per task."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..evaluation.plots import finish, plt
from .automata import TASKS, TITLES
from .cells import ARMS, LENGTHS, Row
from .words import TRAINED_LENGTH

COLORS = dict(zip(ARMS, ("#00798c", "#2b9348", "#edae49", "#7b5ea7", "#d1495b"), strict=True))
DASHES = {1: "-", 2: "--", 4: ":"}  # by layers
COLUMNS = 3


def accuracy_curves(path: Path, groups: Mapping[tuple[str, str, int], Sequence[Row]]) -> None:
    """`groups` holds the rows of all seeds by task, arm and layers: their mean is drawn, their range shaded."""
    tasks = [task for task in TASKS if any(task == key[0] for key in groups)]
    panels = len(tasks) + 1  # the last holds the legend
    columns = min(COLUMNS, panels)
    lines = -(-panels // columns)
    figure, all_axes = plt.subplots(lines, columns, figsize=(4.4 * columns, 3.4 * lines), squeeze=False)
    for axes, task in zip(all_axes.flat, tasks, strict=False):
        for (_, arm, layers), rows in sorted((x for x in groups.items() if x[0][0] == task), key=order):
            lengths = [length for length in LENGTHS if str(length) in rows[0]["accuracy"]]
            shares = [[row["accuracy"][str(length)] for row in rows] for length in lengths]
            label, color = f"{arm}, {layers} layer{'s' * (layers > 1)}", COLORS[arm]
            means = [sum(x) / len(x) for x in shares]
            axes.plot(lengths, means, marker="o", ms=3, color=color, ls=DASHES[layers], label=label)
            axes.fill_between(lengths, list(map(min, shares)), list(map(max, shares)), color=color, alpha=0.12, lw=0)
        axes.axvline(TRAINED_LENGTH, color="#888888", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(LENGTHS, map(str, LENGTHS))
        axes.set_ylim(0, 1.03)
        axes.set_title(TITLES[task], fontsize=10)
        axes.set_xlabel("length, tokens")
        axes.grid(alpha=0.25, lw=0.5)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    for axes in all_axes.flat[len(tasks) :]:
        axes.set_axis_off()
    all_axes.flat[len(tasks)].legend(handles.values(), handles, loc="center left", frameon=False, fontsize=9)
    figure.suptitle(
        f"Share of tokens that are right against length; trained to {TRAINED_LENGTH} tokens (grey line)\n"
        "mean of seeds, their range shaded",
        fontsize=10,
    )
    finish(figure, path)


def order(item) -> tuple[int, int]:
    (_, arm, layers), _ = item
    return list(ARMS).index(arm), layers
