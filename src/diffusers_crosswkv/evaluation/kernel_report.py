"""Tables, plots and a page from the rows of the kernel benchmark. Every figure in them is a row's."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean

from . import plots
from .kernel_cases import CROSSWKV_LAYERS, IMAGE_TOKENS, KINDS, PLOTTED_LENGTHS, STABLE_DIFFUSION, WIDTHS
from .kernel_rows import PLACE, SHAPE, Row
from .pages import when_and_where_from, write_page
from .tables import markdown

BASELINES = {"layer": "softmax", "attention": "sdpa", "text": "projections", "scan": "fla chunk"}
COMMANDS = {"cpu": "make kernel-bench", "cuda": "make gpu-bench", "xpu": 'make gpu-bench ARGS="--device xpu"'}
TITLES = {
    "layer": "One layer, one step: softmax against reading a prompt state",
    "attention": "The same without projections",
    "text": "Once per prompt: the text's scan beside its projections",
    "scan": "The recurrence alone",
}
HEADER = (
    *("what", "batch", "width", "tokens", "text", "implementation", "ms (quartiles)", "compared"),
    *("peak MiB", "of copy bandwidth", "Triton launches", "argument / minimal bytes", "error"),
)
COLOURS = dict(zip(WIDTHS, ("#d1495b", "#edae49", "#00798c"), strict=True))


class Results:
    """The rows of one machine and dtype."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)
        self.measured = [row for row in self.rows if "median_ms" in row]
        self.by_shape: dict[tuple, dict[str, Row]] = {}
        for row in self.measured:
            self.by_shape.setdefault(shape_of(row), {})[row["implementation"]] = row

    def of(self, **wanted: object) -> list[Row]:
        return [row for row in self.measured if all(row[key] == value for key, value in wanted.items())]

    def speedup(self, row: Row) -> float | None:
        """How many times as fast as the baseline of its case, measured in the same run."""
        baseline = self.by_shape[shape_of(row)].get(BASELINES[row["kind"]])
        if baseline is None or baseline is row:
            return None
        return baseline["median_ms"] / row["median_ms"]

    def layer_means(self, implementation: str) -> list[tuple[int, int, list[float]]]:
        """Batch, text tokens, and softmax / CrossWKV at each of Stable Diffusion's three shapes, where all ran."""
        found = []
        for batch, length in sorted({(r["batch"], r["text_tokens"]) for r in self.of(kind="layer")}):
            ratios = [
                self.speedup(row)
                for width, tokens in STABLE_DIFFUSION
                for row in self.of(kind="layer", batch=batch, text_tokens=length, width=width, tokens=tokens)
                if row["implementation"] == implementation
            ]
            complete = [x for x in ratios if x is not None]
            if len(complete) == len(STABLE_DIFFUSION):
                found.append((batch, length, complete))
        return found


def shape_of(row: Row) -> tuple:
    return tuple(row[name] for name in SHAPE)


def run_tables(path: Path, this_run: Row, kinds: Sequence[str]) -> str:
    """The table of one machine's rows, and the ratios between the sides."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    results = Results(row for row in rows if all(row[name] == this_run[name] for name in PLACE))
    return "\n\n".join([machine(results), table(results, kinds), summaries(results, kinds)])


def table(results: Results, kinds: Sequence[str] = KINDS) -> str:
    """One line per row that was measured, and one per reason why others were not."""
    rows = [row for kind in kinds for row in sorted(results.of(kind=kind), key=order_of)]
    return markdown(HEADER, [line(row, results) for row in rows] + not_run_lines(results, kinds))


def order_of(row: Row) -> tuple:
    numbers = (row[name] or 0 for name in ("batch", "width", "tokens", "text_tokens"))
    return (*numbers, row["direction"])


def line(row: Row, results: Results) -> list[str]:
    speedup = results.speedup(row)
    baseline = BASELINES[row["kind"]]
    if speedup is None:
        compared = ""
    elif row["kind"] == "text":
        compared = f"{1 / speedup:.2f} x the time of {baseline}"
    else:
        compared = f"{speedup:.2f} x as fast as {baseline}"
    moved = row["triton_argument_bytes"] / row["minimal_bytes"] if "triton_argument_bytes" in row else None
    return [
        row["kind"] + (", forward + backward" if row["direction"] == "forward+backward" else ""),
        *("" if row[name] is None else f"{row[name]}" for name in ("batch", "width", "tokens", "text_tokens")),
        row["implementation"],
        f"{row['median_ms']:.4g} ({row['q25_ms']:.4g} to {row['q75_ms']:.4g})",
        compared,
        f"{row['peak_bytes'] / 2**20:.1f}",
        f"{100 * row['bandwidth_share']:.1f} %",
        f"{row.get('triton_launches', '')}",
        "" if moved is None else f"{moved:.2f}",
        f"{row['error']:.1e}" if "error" in row else "",
    ]


def not_run_lines(results: Results, kinds: Sequence[str]) -> list[list[str]]:
    """Shapes that share what stopped them share a line."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        if "not_run" in row and row["kind"] in kinds:
            groups.setdefault((row["kind"], row["implementation"], row["because"]), []).append(row)
    lines = []
    for (kind, implementation, _), rows in groups.items():
        first = rows[0]
        where = "any shape" if first["batch"] is None else f"shapes: {len(rows)}, the first {shape_in_words(first)}"
        reason = f"not run ({where}): {first['not_run']}".replace("|", "/")
        lines.append([kind, *[""] * 4, implementation, reason, *[""] * (len(HEADER) - 7)])
    return lines


def shape_in_words(row: Row) -> str:
    names = {"batch": "batch", "width": "width", "tokens": "tokens", "text_tokens": "text"}
    return " ".join([*(f"{word} {row[x]}" for x, word in names.items() if row[x] is not None), row["direction"]])


def layer_summary(results: Results, implementation: str = "crosswkv") -> str:
    """Time of softmax over the time of a layer that reads a prompt state, per shape and over the three."""
    header = ["batch", "text tokens", *(f"D {width}, T {tokens}" for width, tokens in STABLE_DIFFUSION)]
    rows = [
        [str(batch), str(length), *(f"{x:.2f}" for x in ratios), f"**{geometric_mean(ratios):.2f}**"]
        for batch, length, ratios in results.layer_means(implementation)
    ]
    return markdown([*header, "geometric mean"], rows) if rows else ""


def width_summary(results: Results, kind: str, implementation: str, along: str, inverse: bool = False) -> str:
    """Time of the baseline over that of an implementation (or the inverse) per shape, widths side by side."""
    found: dict[tuple, dict[int, str]] = {}
    for row in sorted(results.of(kind=kind, implementation=implementation), key=order_of):
        if (speedup := results.speedup(row)) is not None:
            place = (row["direction"], row["batch"], row[along])
            found.setdefault(place, {})[row["width"]] = f"{1 / speedup if inverse else speedup:.2f}"
    rows = [[*map(str, place), *(of.get(width, "") for width in WIDTHS)] for place, of in sorted(found.items())]
    return markdown(["pass", "batch", "tokens", *(f"D {x}" for x in WIDTHS)], rows) if rows else ""


def summaries(results: Results, kinds: Sequence[str] = KINDS) -> str:
    """The ratios that the goals are about, of what was measured."""
    tables = {
        "layer": {
            f"Time of softmax / time of {name}, one layer:": layer_summary(results, name) for name in CROSSWKV_LAYERS
        },
        "text": {
            "Time of the text's scan / time of its projections:": width_summary(
                results, "text", "scan", "text_tokens", inverse=True
            )
        },
        "scan": {
            "Time of `chunk_rwkv7` / time of triton:": width_summary(results, "scan", "triton", "tokens"),
        },
    }
    parts = [part for kind in kinds for pair in tables.get(kind, {}).items() if pair[1] for part in pair]
    return "\n\n".join(parts)


def row_files(folder: Path) -> list[Path]:
    """The files of rows in a benchmark's folder, one per device, at least one."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"There are no rows in {folder}; run the benchmark first.")
    return paths


def load(path: Path) -> dict[str, Results]:
    """Rows by machine and dtype, under a name that files can have."""
    groups: dict[tuple, list[Row]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        groups.setdefault(tuple(row[name] for name in PLACE), []).append(row)
    names = [f"{path.stem}-{rows[0]['dtype']}-{rows[0]['threads']}-threads" for rows in groups.values()]
    if path.stem != "cpu":
        names = [name.rsplit("-", 2)[0] for name in names]
    unique = [name if name not in names[:i] else f"{name}-{i}" for i, name in enumerate(names)]
    return dict(zip(unique, map(Results, groups.values()), strict=True))


def machine(results: Results) -> str:
    row = results.rows[0]
    on_cpu = f"{row['processor']}, {row['threads']} of {row['cores']} cores"
    return f"{on_cpu if row['device'] == 'cpu' else row['device']}, {row['dtype']}"


def write_report(folder: Path) -> str:
    """Write `README.md`, `<device>....md` with all rows, and plots beside the rows; returns the page.

    Raises:
        FileNotFoundError: there are no rows.
    """
    paths = row_files(folder)
    sections = []
    for path in paths:
        for name, results in load(path).items():
            sections.append(section(folder, name, results))
    missing = [device for device in COMMANDS if device not in {path.stem for path in paths}]
    if missing:
        lines = [f"- {device}: **not run**, there was none. Command: `{COMMANDS[device]}`." for device in missing]
        sections.append("\n".join(["## Other devices", "", *lines]))
    return write_page(folder, [INTRODUCTION, *sections])


def section(folder: Path, name: str, results: Results) -> str:
    tables = [f"## {TITLES[kind]}\n\n{table(results, [kind])}" for kind in KINDS]
    (folder / f"{name}.md").write_text("\n\n".join([f"# {machine(results)}", *tables]) + "\n", encoding="utf-8")
    pictures = [f"![{title}]({path.name})" for path, title in draw(folder, name, results)]
    first = results.rows[0]
    versions = ", ".join(f"{x} {first[x]}" for x in ("torch", "triton", "diffusers", "fla") if first[x])
    return "\n\n".join(
        [
            f"## {machine(results)}",
            f"{when_and_where_from(results.rows)}; {versions}. All rows: [{name}.md]({name}.md).",
            summaries(results),
            *pictures,
        ]
    )


def draw(folder: Path, name: str, results: Results) -> list[tuple[Path, str]]:
    """The plots for which there are rows."""
    drawn = []
    for what, (title, xlabel, panels) in {
        "prompt-length": (
            "One layer, one denoising step, against prompt length",
            "prompt length L, tokens",
            by_length(results),
        ),
        "image-tokens": (
            "One layer, one denoising step, against image tokens",
            "image tokens T",
            by_image_tokens(results),
        ),
        "scan": ("The recurrence against its length", "tokens T", by_scanned(results)),
    }.items():
        panels = {heading: curves for heading, curves in panels.items() if curves}
        if panels:
            path = folder / f"{name}-{what}.png"
            plots.cost_curves(path, f"{title}\n{machine(results)}", xlabel, panels)
            drawn.append((path, title))
    return drawn


Panels = dict[str, dict[str, plots.Curve]]


def curve(rows: list[Row], along: str, **style: object) -> plots.Curve:
    return plots.Curve([(row[along], row["median_ms"], row["q25_ms"], row["q75_ms"]) for row in rows], style)


def by_length(results: Results) -> Panels:
    panels: Panels = {}
    for batch in sorted({row["batch"] for row in results.of(kind="layer")}):
        curves = panels.setdefault(f"batch {batch}", {})
        for implementation, dashes in (("softmax", "--"), ("crosswkv", "-")):
            for width, tokens in STABLE_DIFFUSION:
                shape = {"batch": batch, "width": width, "tokens": tokens, "implementation": implementation}
                if rows := results.of(kind="layer", **shape):
                    style = {"color": COLOURS[width], "ls": dashes}
                    curves[f"{implementation}, D {width}, T {tokens}"] = curve(rows, "text_tokens", **style)
    return panels


def by_image_tokens(results: Results) -> Panels:
    panels: Panels = {}
    for batch in sorted({row["batch"] for row in results.of(kind="layer")}):
        curves = panels.setdefault(f"batch {batch}, D {WIDTHS[0]}", {})
        for implementation, dashes in (("softmax", "--"), ("crosswkv", "-")):
            for length, colour in zip(PLOTTED_LENGTHS, COLOURS.values(), strict=False):
                shape = {"batch": batch, "width": WIDTHS[0], "text_tokens": length, "implementation": implementation}
                rows = [row for row in results.of(kind="layer", **shape) if row["tokens"] in IMAGE_TOKENS]
                if rows:
                    curves[f"{implementation}, L {length}"] = curve(rows, "tokens", color=colour, ls=dashes)
    return panels


def by_scanned(results: Results) -> Panels:
    panels: Panels = {}
    for direction in ("forward", "forward+backward"):
        shape = {"kind": "scan", "direction": direction, "batch": 2, "width": WIDTHS[0]}
        curves = panels.setdefault(f"{direction}, batch 2, D {WIDTHS[0]}", {})
        for implementation in dict.fromkeys(row["implementation"] for row in results.of(kind="scan")):
            if rows := results.of(**shape, implementation=implementation):
                curves[implementation] = curve(rows, "tokens")
    return panels


INTRODUCTION = """# What the kernels and layers cost

This page is written by `scripts/benchmark_kernels.py` from the rows beside it, `<device>.jsonl`; no figure is typed.

    make kernel-bench     # on a CPU, 15 minutes at most
    make gpu-bench        # on a GPU, 6 minutes at most

- Sides of a comparison take turns in one run (A B A B ...), after a warm-up; median and quartiles of up to 20
  rounds, fewer where calls are slow. On a GPU events around an eager call are timed, and the L2 cache is emptied
  before each: where kernels are short, the time of launching them counts.
- **layer**: Stable Diffusion's cross-attention (8 heads, text width 768, `AttnProcessor2_0`) with everything it does
  in one step of denoising, against CrossWKV (heads of 64) that reads a prompt state. The state is made beforehand,
  once per prompt: **text** says what that costs; on a CPU its scan makes the features of keys, on a GPU what comes
  before it does. **attention** is both without their projections. **scan** is the recurrence alone.
- **crosswkv** reads products of channels, the default; **crosswkv, identity** is `crosswkv_feature_map="identity"`,
  the paper's features, without its gate too: a cheaper read, which finds less in a text (`benchmarks/alignment`).
- **peak MiB**: what a call holds at its height beyond its arguments, in an untimed call of its own.
- **of copy bandwidth**: the least bytes that an operation must read and write, over its time, as a share of the
  bandwidth of a large copy in the same run. **argument / minimal bytes**: the tensor arguments of all Triton launches
  of a call, each counted once, over those least bytes.
- **error**: relative RMS from float64, gradients included; each row of the file says where it was taken.
- flash-linear-attention runs with the options of its own RWKV-7 layer; its autotuner chooses at T = 2048, untimed,
  and its arguments are in its own convention before the clock starts. `naive loop` runs up to 128 tokens."""
