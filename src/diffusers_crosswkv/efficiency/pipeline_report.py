"""Page and plots from the rows of the pipeline benchmark. Every figure in them is a row's, or a sum of rows."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..evaluation import plots
from ..evaluation.kernel_report import Results, load, machine
from ..evaluation.kernel_rows import Row
from ..evaluation.pages import not_run_sections, when_and_where_from, write_page
from ..evaluation.prompt_length import SOFTMAX
from ..evaluation.prompt_length_report import STYLES
from ..evaluation.tables import NOT_RUN, markdown
from .pipeline_benchmark import DECODE, IMAGE, SCAN, STEP, TEXT
from .pipeline_memory import KIND
from .pipeline_sides import SIDES, STATE

COMMANDS = {"cpu": "make pipeline-bench", "cuda": "python scripts/benchmark_pipeline.py --device cuda"}
TIME_HEADER = (
    *("pixels", "text tokens", "softmax, s", "state, s", "softmax / state", "step, softmax, ms", "step, state, ms"),
    *("text encoder, ms", "scan, ms", "VAE, ms", "step's peak, softmax, MB", "step's peak, state, MB"),
)
WORK_HEADER = (
    *("pixels", "text tokens", "step, softmax", "step, state", "scan, once", "cross-attention, softmax"),
    *("cross-attention, state", "13 T H N"),
)
MEMORY_HEADER = (
    *("option", "peak, softmax, GB", "peak, state, GB", "imports, GB", "softmax, s per image", "state, s per image"),
    *("error, softmax", "error, state"),
)
SECONDS = r"[\d.e+]+(?= s\b)"
QUARTILES = ("q25_ms", "median_ms", "q75_ms")


@dataclass(frozen=True)
class Image:
    """The time of an image, ms: quartiles, each the sum of those of its parts."""

    low: float
    median: float
    high: float


def write_report(folder: Path) -> str:
    """Write `README.md` and plots beside the rows, `<device>.jsonl`; returns the page."""
    paths = sorted(folder.glob("*.jsonl"))
    sections = [section(folder, name, results) for path in paths for name, results in load(path).items()]
    return write_page(folder, [INTRODUCTION, *sections, *not_run_sections(COMMANDS, paths)])


def section(folder: Path, name: str, results: Results) -> str:
    """Of one machine and dtype."""
    first = results.rows[0]
    loads = [row["load_average"] for row in results.rows]
    versions = ", ".join(f"{x} {first[x]}" for x in ("torch", "diffusers", "transformers"))
    parts = [
        f"## {machine(results)}",
        f"{when_and_where_from(results.rows)}; {versions}; load average before a part {min(loads)} to {max(loads)}.",
    ]
    for preset in dict.fromkeys(row["kind"] for row in results.rows):
        parts += of_preset(folder, name, results, preset)
    return "\n\n".join(parts)


def of_preset(folder: Path, name: str, results: Results, preset: str) -> list[str]:
    rows = [row for row in results.rows if row["kind"] == preset]
    counts = {row["implementation"]: row["parameters"] for row in rows if row["direction"] == STEP}
    parts = []
    if counts:
        words = " and ".join(f"{count / 1e6:.2f} M with {side}" for side, count in counts.items())
        parts += [f"### `{preset}`: time per image", f"The U-Net has {words}.", time_table(results, preset)]
        parts += [text for text in (whole_images(results, preset), not_run(rows)) if text]
        path = folder / f"{name}-{preset}-time.png"
        draw_times(path, results, preset)
        parts += [f"![Time per image against prompt length]({path.name})"]
        parts += [f"### `{preset}`: GFLOP", work_table(rows), WORK_NOTE]
    processes = [row for row in rows if row["direction"].startswith(KIND)]
    if processes:
        size, length = processes[0]["width"], processes[0]["text_tokens"]
        parts.append(f"### `{preset}`: memory of the whole process, {size} pixels, {length} tokens")
        parts.append(memory_table(processes))
    measured = [row for row in processes if "peak_bytes" in row]
    if measured:
        path = folder / f"{name}-{preset}-memory.png"
        draw_memory(path, measured, machine(results))
        parts.append(f"![Peak memory of the process]({path.name})")
    return parts


def image_times(results: Results, preset: str, size: int, length: int) -> dict[str, Image]:
    """Text encoder + scan (`state` alone) + all steps + VAE, of the sides of which all parts were measured."""
    found = {}
    for side in SIDES:
        parts = [(results.of(kind=preset, direction=TEXT, text_tokens=length), 1)]
        if side == STATE:
            parts.append((results.of(kind=preset, direction=SCAN, text_tokens=length), 1))
        steps = results.of(kind=preset, direction=STEP, width=size, text_tokens=length, implementation=side)
        parts.append((steps, steps[0]["steps"] if steps else 0))
        parts.append((results.of(kind=preset, direction=DECODE, width=size), 1))
        if all(rows for rows, _ in parts):
            found[side] = Image(*(sum(times * rows[0][key] for rows, times in parts) for key in QUARTILES))
    return found


def shapes(results: Results, preset: str, direction: str) -> list[tuple[int, int]]:
    """Sizes and lengths at which steps or images were measured."""
    return sorted({(row["width"], row["text_tokens"]) for row in results.of(kind=preset, direction=direction)})


def time_table(results: Results, preset: str) -> str:
    lines = []
    for size, length in shapes(results, preset, STEP):
        images = image_times(results, preset, size, length)
        steps = {row["implementation"]: row for row in results.of(
            kind=preset, direction=STEP, width=size, text_tokens=length
        )}  # fmt: skip
        once = [
            results.of(kind=preset, direction=direction, **where)
            for direction, where in (
                (TEXT, {"text_tokens": length}),
                (SCAN, {"text_tokens": length}),
                (DECODE, {"width": size}),
            )
        ]
        both = len(images) == len(SIDES)
        ratio = f"**{images[SOFTMAX].median / images[STATE].median:.2f}**" if both else ""
        lines.append(
            [
                *(str(size), str(length)),
                *(seconds(images[side]) if side in images else NOT_RUN for side in SIDES),
                ratio,
                *(milliseconds(steps.get(side)) for side in SIDES),
                *(milliseconds(rows[0] if rows else None) for rows in once),
                *(megabytes(steps.get(side, {})) for side in SIDES),
            ]
        )
    return markdown(TIME_HEADER, lines)


def work_table(rows: list[Row]) -> str:
    """10^9 operations, also of sizes that were not run: they are counted, not measured."""
    scans = {row["text_tokens"]: row["flops"] for row in rows if row["direction"] == SCAN}
    steps: dict[tuple[int, int], dict[str, Row]] = {}
    for row in rows:
        if row["direction"] == STEP:
            steps.setdefault((row["width"], row["text_tokens"]), {})[row["implementation"]] = row
    lines = [
        [
            *(str(size), str(length)),
            *(giga(of[side]["flops"]) for side in SIDES),
            giga(scans[length]),
            *(giga(of[side]["cross_attention_flops"]) for side in SIDES),
            giga(of[STATE]["papers_formula"]),
        ]
        for (size, length), of in sorted(steps.items())
    ]
    return markdown(WORK_HEADER, lines)


def whole_images(results: Results, preset: str) -> str:
    """How far the sums are from images that were drawn whole."""
    sentences = []
    for size, length in shapes(results, preset, IMAGE):
        sums = image_times(results, preset, size, length)
        for row in results.of(kind=preset, direction=IMAGE, width=size, text_tokens=length):
            if row["implementation"] in sums:
                expected, side = sums[row["implementation"]].median, row["implementation"]
                sentences.append(
                    f"{side}, {size} pixels, {length} tokens: {1e-3 * row['median_ms']:.3g} s whole, "
                    f"{1e-3 * expected:.3g} s as a sum ({expected / row['median_ms'] - 1:+.1%})"
                )
    return f"Images drawn whole by the pipelines: {'; '.join(sentences)}." if sentences else ""


def not_run(rows: list[Row]) -> str:
    """A line per part and size."""
    reasons: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        if "not_run" in row and not row["direction"].startswith(KIND):
            reasons.setdefault((row["direction"], row["width"]), []).append(row["not_run"])
    lines = [f"- {part}, {size} pixels, {NOT_RUN}: {without_repetition(of)}." for (part, size), of in reasons.items()]
    return "\n".join(lines)


def without_repetition(reasons: list[str]) -> str:
    """Those that differ in a number of seconds alone are one, with the least and the most."""
    seconds: dict[str, set[float]] = {}
    for reason in reasons:
        seconds.setdefault(re.sub(SECONDS, "{}", reason), set()).update(map(float, re.findall(SECONDS, reason)))
    ranges = {text: sorted({min(of), max(of)}) if of else [] for text, of in seconds.items()}
    return "; ".join(text.format(" to ".join(f"{x:.3g}" for x in of)) for text, of in ranges.items())


def memory_table(rows: list[Row]) -> str:
    lines = []
    for option, of in by_option(rows).items():
        sides = [of.get(side, {}) for side in SIDES]
        lines.append(
            [
                option,
                *(f"{row['peak_bytes'] / 1e9:.3f}" if "peak_bytes" in row else why_not(row) for row in sides),
                " / ".join(f"{row['imported_bytes'] / 1e9:.3f}" for row in sides if "imported_bytes" in row),
                *(f"{1e-3 * row['image_ms']:.3g}" if "image_ms" in row else "" for row in sides),
                *(f"{row['error']:.1e}" if "error" in row else "" for row in sides),
            ]
        )
    return markdown(MEMORY_HEADER, lines)


def by_option(rows: list[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["direction"].removeprefix(KIND), {})[row["implementation"]] = row
    return found


def why_not(row: Row) -> str:
    return f"{NOT_RUN}: {row['not_run']}" if "not_run" in row else ""


def draw_times(path: Path, results: Results, preset: str) -> None:
    panels: dict[str, dict[str, plots.Curve]] = {}
    for size, length in shapes(results, preset, STEP):
        for side, image in image_times(results, preset, size, length).items():
            style = STYLES[SOFTMAX] if side == SOFTMAX else {"color": "#00798c"}
            curve = panels.setdefault(f"{size} x {size} pixels", {}).setdefault(side, plots.Curve([], style))
            curve.points.append((length, image.median, image.low, image.high))  # type: ignore[attr-defined]
    steps = results.of(kind=preset, direction=STEP)[0]["steps"]
    title = f"{preset}: an image of {steps} guided steps, from prompt to picture\n{machine(results)}"
    plots.cost_curves(path, title, "tokens of the prompt, and of the negative prompt", panels)


def draw_memory(path: Path, rows: list[Row], title: str) -> None:
    """Bars: peaks of both sides under each option, and what the imports alone need."""
    options = by_option(rows)
    figure, axes = plots.plt.subplots(figsize=(7.2, 0.7 * len(options) + 1.6))
    labels = {SOFTMAX: SOFTMAX, STATE: STATE}
    for i, of in enumerate(options.values()):
        for j, side in enumerate(side for side in SIDES if side in of):
            place, colour = i + 0.38 * j, "#00798c" if side == STATE else STYLES[SOFTMAX]["color"]
            label = labels.pop(side, None)
            axes.barh(place, of[side]["peak_bytes"] / 1e9, height=0.34, color=colour, label=label)
            axes.plot([of[side]["imported_bytes"] / 1e9] * 2, [place - 0.17, place + 0.17], color="white", lw=1.5)
    axes.set_yticks([i + 0.19 for i in range(len(options))], list(options))
    axes.invert_yaxis()
    axes.set_xlabel("peak memory of the process, GB (white line: imports alone)")
    axes.set_title(title, fontsize=10, loc="left", pad=22)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)
    axes.grid(alpha=0.25, lw=0.5, axis="x")
    plots.finish(figure, path)


def seconds(image: Image) -> str:
    return f"{1e-3 * image.median:.4g} ({1e-3 * image.low:.4g} to {1e-3 * image.high:.4g})"


def milliseconds(row: Row | None) -> str:
    return "" if row is None else f"{row['median_ms']:.4g}"


def megabytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in row else ""


def giga(count: int) -> str:
    return f"{count / 1e9:.4g}"


WORK_NOTE = """\
A step is of one image with guidance, so of two samples. All is counted on the meta device, where each operator is
plain PyTorch: `FlopCounterMode` knows neither the fused attention of a CPU nor Triton kernels, and would count
them as nothing. **13 T H N** is the paper's formula, summed over the layers and both samples: it has the width N
of a head where every product with a state has N squared (reading alone takes 2 T H N^2), so it is not a count of
the work; that the cost does not depend on the prompt's length is what it has in common with what is counted."""

INTRODUCTION = """# What an image costs

This page is written by `scripts/benchmark_pipeline.py` from the rows beside it, `<device>.jsonl`; no figure is
typed.

- **softmax** is the stock pipeline and U-Net of Diffusers, **state** is `DIR7Pipeline` with a U-Net of the same
  config in `state` fusion. Both have one text encoder (the size of CLIP ViT-L/14), one VAE (that of Stable
  Diffusion 1.5) and one DDIM scheduler, and read the same embeddings: a prompt and a negative prompt of as many
  tokens, encoded in windows of 77 where they are longer. All weights are random: times and memory do not depend on
  them.
- **Time per image** = text encoder + scan (`state` alone) + steps + VAE, guidance on. Steps are alike, so one is
  timed, up to 20 times, and multiplied; the two sides take turns. Where a call takes 4 seconds or more there is no
  warm-up and it is made twice, or once from a minute on. Quartiles of an image are sums of those of its parts. Images
  drawn whole, by the pipelines themselves, are beside their sum below the table.
- **step's peak**: what a step holds at its height beyond weights and arguments.
- **Memory of the whole process**: a fresh interpreter loads a saved pipeline and draws; on a CPU its resident set
  at its height, libraries and all; on a GPU what PyTorch has allocated at most. On a CPU 5 steps are run, and the
  time of an image is that with 45 more. **text encoder dropped**: prompts are encoded first (into prompt states,
  or embeddings), then `pipe.text_encoder = None`. **int8**: U-Net and text encoder were saved with 8 bit weights
  by Diffusers' quantization with torchao; see [memory and speed](../../docs/memory_and_speed.md). **error**:
  relative RMS of the last latents from those of the pipeline as loaded; random weights are no guide to how that
  looks."""
