"""Page and plots from the rows of the training benchmark. Every figure in them is a row's."""

from pathlib import Path

from . import plots
from .kernel_report import Results, curve, load, machine, row_files
from .kernel_rows import Row
from .pages import not_run_sections, when_and_where_from, write_page
from .prompt_length import SOFTMAX
from .prompt_length_report import STYLES, mebibytes, shape
from .tables import NOT_RUN, markdown
from .training_speed import STATE

HEADER = (
    *("trained", "text tokens", "softmax, images/s", "state, images/s", "state / softmax"),
    *("peak, softmax", "peak, state"),
)
CURVES = {SOFTMAX: STYLES[SOFTMAX], STATE: {"color": "#00798c"}}
COMMANDS = {"cpu": "make train-bench", "cuda": "python scripts/benchmark_training.py --device cuda"}


def write_report(folder: Path) -> str:
    """Write `README.md` and one plot per machine beside the rows; returns the page.

    Raises:
        FileNotFoundError: there are no rows.
    """
    paths = row_files(folder)
    sections = [section(folder, name, results) for path in paths for name, results in load(path).items()]
    return write_page(folder, [INTRODUCTION, *sections, *not_run_sections(COMMANDS, paths)])


def section(folder: Path, name: str, results: Results) -> str:
    """Of one machine and dtype: what it is, tables, plot."""
    first = results.rows[0]
    loads = [row["load_average"] for row in results.rows]
    parts = [
        f"## {machine(results)}",
        f"{when_and_where_from(results.rows)}; torch {first['torch']}, "
        f"diffusers {first['diffusers']}; load average before a case {min(loads)} to {max(loads)}.",
    ]
    of_shapes: dict[tuple, list[Row]] = {}
    for row in results.rows:
        of_shapes.setdefault((row["kind"], row["batch"], row["tokens"]), []).append(row)
    for (preset, *_), rows in of_shapes.items():
        parts += [f"### `{preset}`: {shape(rows[0])}", markdown(HEADER, [cells(of) for of in comparisons(rows)])]
    panels = {}
    for (preset, batch, tokens), rows in of_shapes.items():
        chosen = {"kind": preset, "batch": batch, "tokens": tokens, "direction": "all"}
        if results.of(**chosen):
            panels[f"{preset}, {shape(rows[0])}"] = {
                side: curve(results.of(**chosen, implementation=side), "text_tokens", **style)
                for side, style in CURVES.items()
            }
    if panels:
        path = folder / f"{name}.png"
        plots.cost_curves(path, f"One training step of a U-Net\n{machine(results)}", "text tokens L", panels)
        parts.append(f"![Time against text tokens]({path.name})")
    return "\n\n".join(parts)


def comparisons(rows: list[Row]) -> list[dict[str, Row]]:
    """The sides of each case, in the order of the rows."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["direction"], row["text_tokens"]), {})[row["implementation"]] = row
    return list(found.values())


def cells(of: dict[str, Row]) -> list[str]:
    state = of[STATE]
    speeds = [speed(of[side]) if side in of else "" for side in (SOFTMAX, STATE)]
    ratio = f"{state['speed']:.3f} ({state['speed_q25']:.3f} to {state['speed_q75']:.3f})" if "speed" in state else ""
    peaks = [
        mebibytes(of[side]["peak_bytes"]) if "peak_bytes" in of.get(side, {}) else "" for side in (SOFTMAX, STATE)
    ]
    return [state["direction"], str(state["text_tokens"]), *speeds, ratio, *peaks]


def speed(row: Row) -> str:
    if "not_run" in row:
        return f"{NOT_RUN}: {row['not_run']}"
    slowest, fastest = (1e3 * row["batch"] / row[name] for name in ("q75_ms", "q25_ms"))
    return f"{row['images_per_second']:.4g} ({slowest:.4g} to {fastest:.4g})"


INTRODUCTION = """# What a training step costs

This page is written by `scripts/benchmark_training.py` from the rows beside it, `<device>.jsonl`; no figure is typed.

- A whole training step: noise, forward, backward, clipping, AdamW; images per second, median and quartiles.
  **softmax** is the stock U-Net of Diffusers with the same config and its own attention, **state** is
  `DIR7UNet2DConditionModel` in `state` fusion, which scans the text once per step for all layers.
- The text is frozen: random embeddings of L tokens with a mask, which keeps between half and all of a prompt's
  tokens, or 8 to 24 where that is said. One prompt of each batch has all L, so that no padding can be cut off, but for
  the short ones, where `state` cuts it off on a CPU.
- The sides of a case take turns, step by step, in one process after a warm-up. **state / softmax** is the ratio of
  their images per second, taken round by round, median and quartiles: above 1 `state` is the faster one.
- **peak**: on a CPU the resident set of a process of its own at its height, with all that it has imported; on a GPU
  what PyTorch had allocated at most, weights and optimizer included.
- **trained**: `all` weights; `attn2`, cross-attention alone; `state`, a prompt state that a frozen U-Net reads, for
  which softmax has no counterpart."""
