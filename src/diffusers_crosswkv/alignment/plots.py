"""Plots of the alignment benchmark, and the sheet of pictures side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.alignment import Mean
from ..evaluation.plots import finish, plt

COLOURS = {
    "softmax": "#444444",
    "state": "#d1495b",
    "prefix": "#edae49",
    "paper": "#00798c",
    "no text": "#b8b8b8",
    "chance": "#dddddd",
    "real renders": "#8fbf8f",
}


def grouped_bars(
    path: Path, means: Mapping[str, Mapping[str, Mean | None]], ylabel: str, chance: Mapping[str, float] | None = None
) -> None:
    """One group per inner key, one bar with its interval per outer key; chance is a line across its group."""
    groups = list(dict.fromkeys(name for of in means.values() for name in of))
    means = {arm: of for arm, of in means.items() if any(of.values())}
    figure, axes = plt.subplots(figsize=(max(6.0, 1.5 * len(groups)), 3.6))
    width = 0.8 / max(len(means), 1)
    for i, (arm, of) in enumerate(means.items()):
        shown = [(j, mean) for j, name in enumerate(groups) if (mean := of.get(name)) is not None]
        heights = [100 * mean.mean for _, mean in shown]
        errors = [[100 * (mean.mean - mean.low) for _, mean in shown], [100 * (m.high - m.mean) for _, m in shown]]
        places = [j - 0.4 + width * (i + 0.5) for j, _ in shown]
        style: dict[str, Any] = {"color": COLOURS.get(arm), "label": arm, "capsize": 2, "error_kw": {"lw": 0.8}}
        axes.bar(places, heights, width, yerr=[[max(x, 0) for x in side] for side in errors], **style)
    for j, name in enumerate(groups):
        if chance and name in chance:
            axes.plot([j - 0.4, j + 0.4], [100 * chance[name]] * 2, "k:", lw=1, label="chance" if j == 0 else None)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 100)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, ncols=3, fontsize=8)
    finish(figure, path)


def recall_curves(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], chance: float) -> None:
    """Accuracy against the number of facts."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name, points in curves.items():
        facts, accuracy = zip(*points, strict=True)
        axes.plot(facts, [100 * x for x in accuracy], marker="o", ms=4, label=name)
    axes.axhline(100 * chance, color="black", ls=":", lw=1, label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(facts, facts)
    axes.set_xlabel("facts in the prompt")
    axes.set_ylabel("recalled, %")
    axes.legend(frameon=False, fontsize=8)
    finish(figure, path)


def side_by_side(path: Path, captions: Sequence[str], pictures: Mapping[str, Sequence[Image.Image]]) -> None:
    """One row per caption, one column per name; the first pictures that were drawn, not the best."""
    size, gap, left, top = 96, 6, 420, 28
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size=13)
    sheet = Image.new("RGB", (left + len(pictures) * (size + gap), top + len(captions) * (size + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, of) in enumerate(pictures.items()):
        x = left + column * (size + gap)
        draw.text((x + size // 2, top // 2), name, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(of):
            sheet.paste(picture.resize((size, size), Image.Resampling.NEAREST), (x, top + row * (size + gap)))
    for row, caption in enumerate(captions):
        y = top + row * (size + gap)
        for line, text in enumerate(wrap(caption, 52)):
            draw.text((4, y + 8 + 18 * line), text, fill="black", font=font)
    sheet.save(path)


def wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
