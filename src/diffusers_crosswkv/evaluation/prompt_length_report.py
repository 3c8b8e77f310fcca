"""Page and plots from the rows of the prompt length benchmark. Every figure in them is a row's."""

import math
from pathlib import Path

from . import plots
from .kernel_report import Results, curve, load, machine, row_files
from .kernel_rows import Row
from .pages import when_and_where_from, write_page
from .prompt_length import ENCODE, PRESETS, READ, SCAN, SOFTMAX
from .tables import markdown

HEADER = (
    *("text tokens", "softmax", "state, read", "softmax / read", "state, scanned in the step", "encode once"),
    "steps that repay it",
    *("softmax: keys, values", "prompt state", "peak, softmax", "peak, read"),
)
STYLES = {
    SOFTMAX: {"color": "#d1495b", "ls": "--"},
    READ: {"color": "#00798c"},
    SCAN: {"color": "#00798c", "ls": ":"},
    ENCODE: {"color": "#edae49"},
}


def write_report(folder: Path) -> str:
    """Write `README.md` and one plot per machine beside the rows; returns the page.

    Raises:
        FileNotFoundError: there are no rows.
    """
    sections = [section(folder, name, results) for path in row_files(folder) for name, results in load(path).items()]
    return write_page(folder, [INTRODUCTION, *sections])


def section(folder: Path, name: str, results: Results) -> str:
    """Of one machine: what it is, tables, plot."""
    first = results.rows[0]
    versions = ", ".join(f"{x} {first[x]}" for x in ("torch", "triton", "diffusers") if first[x])
    parts = [
        f"## {machine(results)}",
        f"{when_and_where_from(results.rows)}; {versions}.",
    ]
    presets = [preset for preset in PRESETS if results.of(kind=preset)]
    for preset in presets:
        parts += [
            f"### `{preset}`: {shape(results.of(kind=preset)[0])}",
            table(results, preset),
            summary(results, preset),
        ]
    panels = {
        f"{preset}, {shape(results.of(kind=preset)[0])}": {
            side: curve(results.of(kind=preset, implementation=side), "text_tokens", **style)
            for side, style in STYLES.items()
        }
        for preset in presets
    }
    path = folder / f"{name}.png"
    plots.cost_curves(path, f"One denoising step of a U-Net\n{machine(results)}", "prompt length L, tokens", panels)
    return "\n\n".join([*parts, f"![Time against prompt length]({path.name})"])


def shape(row: Row) -> str:
    side = round(row["tokens"] ** 0.5)
    return f"{side} x {side} latents, batch {row['batch']}"


def table(results: Results, preset: str) -> str:
    """Milliseconds and bytes per prompt length, all sides of one run."""
    rows = []
    for length in lengths_of(results, preset):
        of = {row["implementation"]: row for row in results.of(kind=preset, text_tokens=length)}
        ratio = of[SOFTMAX]["median_ms"] / of[READ]["median_ms"]
        times = {
            side: f"{row['median_ms']:.4g} ({row['q25_ms']:.4g} to {row['q75_ms']:.4g})" for side, row in of.items()
        }
        rows.append(
            [
                *(str(length), times[SOFTMAX], times[READ], f"{ratio:.2f}", times[SCAN], times[ENCODE]),
                steps_to_repay(of),
                *(kibibytes(of[side]["prompt_bytes"]) for side in (SOFTMAX, READ)),
                *(mebibytes(of[side]["peak_bytes"]) for side in (SOFTMAX, READ)),
            ]
        )
    return markdown(HEADER, rows)


def steps_to_repay(of: dict[str, Row]) -> str:
    """Denoising steps from which encoding once and reading takes less time than softmax."""
    saved = of[SOFTMAX]["median_ms"] - of[READ]["median_ms"]
    return f"{math.ceil(of[ENCODE]['median_ms'] / saved)}" if saved > 0 else "never"


def summary(results: Results, preset: str) -> str:
    """How much the longest prompt costs more than the shortest, of both sides."""
    lengths = lengths_of(results, preset)
    of = {side: {row["text_tokens"]: row for row in results.of(kind=preset, implementation=side)} for side in STYLES}
    growth = {side: of[side][lengths[-1]]["median_ms"] / of[side][lengths[0]]["median_ms"] for side in of}
    times = [row["median_ms"] for row in of[READ].values()]
    sizes = sorted({row["prompt_bytes"] for row in of[READ].values()})
    error = max(row["error"] for row in of[READ].values())
    return (
        f"From {lengths[0]} to {lengths[-1]} text tokens a step takes {growth[SOFTMAX]:.2f} times as long with "
        f"softmax, {growth[READ]:.2f} times with a prompt state; the slowest length of a state takes "
        f"{max(times) / min(times):.2f} times as long as the fastest. "
        f"The state has {', '.join(map(kibibytes, sizes))} at all lengths. "
        f"A step that reads it differs from one that scans the text by {error:.1e} at most (relative RMS)."
    )


def lengths_of(results: Results, preset: str) -> list[int]:
    return sorted({row["text_tokens"] for row in results.of(kind=preset)})


def kibibytes(count: int) -> str:
    return f"{count / 2**10:.0f} KiB"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


INTRODUCTION = """# What a step costs as the prompt grows

This page is written by `scripts/benchmark_prompt_length.py` from the rows beside it, `<device>.jsonl`; no figure is
typed.

- One denoising step of a whole U-Net, milliseconds, median and quartiles. **softmax** is the stock U-Net of Diffusers
  with the same config and its own attention (PyTorch's `scaled_dot_product_attention`). **state, read** has CrossWKV
  and reads a prompt state; **encode once** is what making that state costs, once per prompt and not per step.
  **state, scanned in the step** is the plain call with the text, as the stock pipelines make it at every step.
- **steps that repay it**: from so many steps on, encoding once and reading is faster than softmax at every step.
- Weights and inputs are random. All lengths and sides of a U-Net take turns in one run, after a warm-up.
- **keys, values**: what softmax makes of the prompt in all layers, anew at each step; **prompt state**: what is read
  instead, with all that continuing the text needs. **peak**: what a call holds at its height beyond its arguments."""
