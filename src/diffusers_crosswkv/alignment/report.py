"""Tables, plots and a page from the rows that the trainings left."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from ..data.captions import LANGUAGES, PLACES
from ..data.scene_splits import SPLITS
from ..data.scenes import GRIDS
from ..evaluation.alignment import METRICS, Mean, bootstrap, paired_difference
from ..evaluation.tables import NOT_RUN, markdown
from . import plots
from .arms import MAIN_ARMS, Preset
from .runs import BATCH, cut_sheet, measure_controls, scenes_of
from .suite import PRESETS, RECALLS, ablations, folder_of, jobs_of
from .tables import percent

Row = dict
MAIN = [name for name in MAIN_ARMS if name != "no text"]
CONTROLS = ("chance", "real renders")
SEARCH = "search.jsonl"
READING_SPLITS, READING_SNRS = ("like training", "very long"), ("1", "0.1", "0.01")
GRID_SPLITS = (
    "like training",
    "long, early",
    "long, late",
    "very long, early",
    "very long, middle",
    "very long, late",
)


class Results:
    """Rows of all trainings, and means over seeds and pictures."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)
        self.arms = list(dict.fromkeys(row["arm"] for row in self.rows if "arm" in row))

    def of(self, kind: str, **wanted: object) -> list[Row]:
        return [r for r in self.rows if r["kind"] == kind and all(r.get(k) == v for k, v in wanted.items())]

    def mean(
        self,
        arm: str,
        evaluations: str | list[str],
        metric: str = "everything",
        keep: Callable[[Row, int], bool] = lambda row, i: True,
        seeds: tuple[int, ...] | None = None,
    ) -> Mean | None:
        """Over all pictures of some evaluations for which `keep(row, i)` holds; seeds are the groups."""
        names = [evaluations] if isinstance(evaluations, str) else evaluations
        groups: dict[int, list[float]] = {}
        for row in self.of("alignment", arm=arm):
            if row["evaluation"] in names and (seeds is None or row["seed"] in seeds):
                values = row["shuffled"][metric.split()[1]] if metric.startswith("shuffled ") else row[metric]
                kept = [x for i, x in enumerate(values) if x is not None and keep(row, i)]
                groups.setdefault(row["seed"], []).extend(kept)
        return bootstrap(list(groups.values()))

    def by_caption(self, arm: str, evaluations: list[str], metric: str) -> dict[int, list[float]]:
        """Per seed one value per caption, where all these evaluations were made."""
        found: dict[int, dict[str, list[float]]] = {}
        for row in self.of("alignment", arm=arm):
            if row["evaluation"] in evaluations:
                found.setdefault(row["seed"], {})[row["evaluation"]] = row[metric]
        return {
            seed: [x for name in evaluations for x in columns[name]]
            for seed, columns in found.items()
            if len(columns) == len(evaluations)
        }

    def lead(self, arm: str, other: str, split: str, metric: str) -> Mean | None:
        """How far `arm` is ahead of `other` on one split, over the seeds that both have."""
        ours, theirs = (self.by_caption(name, parts_of(split), metric) for name in (arm, other))
        seeds = sorted(ours.keys() & theirs.keys())
        return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else None

    def by_image_row(self, arm: str, image_row: int) -> Mean | None:
        """Binding of objects whose cell the caption names, in one row of cells, on the split like training."""
        rows = self.of("alignment", arm=arm, evaluation="same")
        return bootstrap(
            [[right for objects in row["bound_by_row"] for at, right in objects if at == image_row] for row in rows]
        )


def main_table(results: Results) -> str:
    """What is right on the split like training."""
    header = ["cross-attention", *METRICS, "everything, shuffled caption"]
    rows = [
        [arm, *(percent(results.mean(arm, "same", m)) for m in (*METRICS, "shuffled everything"))]
        for arm in (*MAIN_ARMS, *CONTROLS)
    ]
    return markdown(header, rows)


def split_table(results: Results, metric: str) -> str:
    names = list(SPLITS)
    rows = [
        [arm, *(percent(results.mean(arm, parts_of(x), metric)) for x in names)] for arm in (*MAIN_ARMS, *CONTROLS)
    ]
    return markdown(["cross-attention", *names], rows)


def lead_table(results: Results, metric: str) -> str:
    """Every fusion minus softmax, paired by caption and seed."""
    names = list(SPLITS)
    rows = [
        [arm, *(percent(results.lead(arm, "softmax", x, metric)) for x in names)] for arm in MAIN if arm != "softmax"
    ]
    return markdown(["minus softmax", *names], rows)


def place_table(results: Results) -> str:
    names = [f"{length}, {place}" for length in ("long", "very long") for place in PLACES]
    rows = [[arm, *(percent(results.mean(arm, x, "binding")) for x in names)] for arm in MAIN_ARMS]
    return markdown(["cross-attention", *names], rows)


def length_means(results: Results, arm: str, metric: str = "binding") -> dict[str, Mean | None]:
    """By length of the prompt; short and medium are those of the split like training."""
    trained = {length: results.mean(arm, "same", metric, having("length", length)) for length in ("short", "medium")}
    return trained | {length: results.mean(arm, parts_of(length), metric) for length in ("long", "very long")}


def length_table(results: Results, metric: str = "binding") -> str:
    means = {arm: length_means(results, arm, metric) for arm in MAIN_ARMS}
    names = list(next(iter(means.values())))
    return markdown(["cross-attention", *names], [[a, *(percent(m[x]) for x in names)] for a, m in means.items()])


def language_table(results: Results) -> str:
    rows = [
        [
            arm,
            *(percent(results.mean(arm, "same", "binding", having("language", name))) for name in LANGUAGES),
        ]
        for arm in MAIN_ARMS
    ]
    return markdown(["cross-attention", *LANGUAGES], rows)


def image_row_table(results: Results, image_rows: int) -> str:
    header = ["cross-attention", *(f"row {i + 1}" for i in range(image_rows))]
    rows = [[arm, *(percent(results.by_image_row(arm, i)) for i in range(image_rows))] for arm in MAIN_ARMS]
    return markdown(header, rows)


def ablation_table(results: Results, preset: Preset) -> str:
    """Every ablation beside the main arms, over the seeds that all have."""
    rows = [
        [
            arm,
            *(percent(results.mean(arm, "same", m, seeds=preset.ablation_seeds)) for m in ("binding", "everything")),
            percent(results.mean(arm, parts_of("very long"), "binding", seeds=preset.ablation_seeds)),
        ]
        for arm in (*MAIN, *ablations(preset))
    ]
    return markdown(["cross-attention", "binding", "everything", "binding, very long prompts"], rows)


def capacity_table(results: Results) -> str:
    recalls = results.of("recall")
    if not recalls:
        return NOT_RUN
    facts = sorted({row["facts"] for row in recalls})
    layers = dict.fromkeys((row["layer"], row["head_dim"]) for row in recalls)
    rows = [
        [
            f"{layer}, {head_dim} x {head_dim}",
            *(
                percent(bootstrap([[r["accuracy"]] for r in matching(recalls, layer, head_dim, n)]), False)
                for n in facts
            ),
        ]
        for layer, head_dim in layers
    ]
    return markdown(["layer, width or numbers of its state", *(f"{n} facts" for n in facts)], rows)


def matching(recalls: list[Row], layer: str, head_dim: int, facts: int) -> list[Row]:
    return [r for r in recalls if (r["layer"], r["head_dim"], r["facts"]) == (layer, head_dim, facts)]


def having(column: str, value: str) -> Callable[[Row, int], bool]:
    return lambda row, i: row[column][i] == value


def parts_of(split: str) -> list[str]:
    return [f"{split}, {place}" for place in PLACES] if "long" in split else [split]


def write_report(preset_name: str, folder: Path, target: Path) -> str:
    """Write `rows.jsonl`, `report.md`, plots and pictures of all finished trainings to `target`; returns the summary.

    Raises:
        FileNotFoundError: there are no rows at all.
    """
    preset = PRESETS[preset_name]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/rows/*.json"))]
    if not rows:
        raise FileNotFoundError(f"There are no rows in {folder}; run the trainings first.")
    rows = [row for entry in rows for row in (entry if isinstance(entry, list) else [entry])]
    target.mkdir(parents=True, exist_ok=True)
    results = Results([*rows, *measure_controls(preset)])
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in results.rows]
    (target / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    draw_plots(results, target)
    copy_pictures(preset, folder, target)
    (target / "tables.md").write_text(tables_page(preset_name, results), encoding="utf-8")
    if (target / SEARCH).exists():
        lines = (target / SEARCH).read_text(encoding="utf-8").splitlines()
        (target / "search.md").write_text(search_page([json.loads(line) for line in lines]), encoding="utf-8")
    return main_table(results)


def search_page(rows: list[Row]) -> str:
    """Every step of the search for the design, failures too, in the order in which they were made."""
    kinds = ("picture", "loss", "validation", "reading", "recall", "grid")
    pictures, losses, validations, readings, recalls, grids = (
        [r for r in rows if r["kind"] == f"{x} search"] for x in kinds
    )
    shown = ("colour", "shape", "cell", "binding", "count", "everything")
    tables = {
        "Pictures": markdown(
            ["cross-attention", "setting", "change", "pictures", *shown],
            [
                [r["arm"], r["setting"], r["change"], str(r.get("pictures", "")), *score_cells(r, shown)]
                for r in pictures
            ],
        ),
        "Training loss, times 1000, on equal batches": markdown(
            ["cross-attention", "change", "learning rate", "steps 100 to 199", "steps 400 to 499"],
            [
                [r["arm"], r["change"], str(r["learning_rate"]), *(f"{1000 * x:.1f}" for x in r["loss"].values())]
                for r in losses
            ],
        ),
        "Validation loss, times 1000, by signal-to-noise ratio": markdown(
            ["cross-attention", "change", "steps", *(validations[0]["loss"] if validations else ())],
            [
                [r["arm"], r["change"], str(r["steps"]), *(f"{1000 * x:.1f}" for x in r["loss"].values())]
                for r in validations
            ],
        ),
        "Validation loss, times 1000, on texts like training and on very long ones": markdown(
            [
                "cross-attention",
                "change",
                "seed",
                "steps",
                *(f"{split}, {snr}" for split in READING_SPLITS for snr in READING_SNRS),
            ],
            [
                [
                    r["arm"],
                    r["change"],
                    str(r["seed"]),
                    str(r["steps"]),
                    *(f"{1000 * r['loss'][split][snr]:.1f}" for split in READING_SPLITS for snr in READING_SNRS),
                ]
                for r in readings
            ],
        ),
        "Recall of facts by one layer": markdown(
            ["layer", "K = V", "steps", "change", "recalled, by number of facts"],
            [
                [
                    r["arm"],
                    str(r["head_dim"]),
                    str(r["steps"]),
                    r["change"],
                    ", ".join(f"{facts}: {100 * share:.1f}" for facts, share in r["recalled"].items()),
                ]
                for r in recalls
            ],
        ),
        "From captions to a grid, without diffusion": markdown(
            ["cross-attention", "change", *GRID_SPLITS],
            [[r["arm"], r["change"], *grid_cells(r)] for r in grids],
        ),
    }
    return "\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()) + "\n"


def grid_cells(row: Row) -> list[str]:
    right = row["cells_right"]
    return [f"{100 * right[name]:.1f}" if name in right else "" for name in GRID_SPLITS]


def score_cells(row: Row, names: tuple[str, ...]) -> list[str]:
    return [f"{100 * row['scores'][name]:.1f}" if "scores" in row else "" for name in names]


def tables_page(preset_name: str, results: Results) -> str:
    preset = PRESETS[preset_name]
    trainings = {(row["arm"], row["seed"]): row for row in results.of("training")}
    wanted = [(name, seed) for name, seed in jobs_of(preset, None, None) if name not in RECALLS]
    recalled = {(row["layer"], row["head_dim"]) for row in results.of("recall")}
    missing = [f"{arm} (seed {seed})" for arm, seed in wanted if (arm, seed) not in trainings]
    missing += [name for name, recall in RECALLS.items() if recall not in recalled]
    image_rows = GRIDS[preset.resolution]
    sections = {
        "Like training": main_table(results),
        "Everything correct, by split": split_table(results, "everything"),
        "Binding, by split": split_table(results, "binding"),
        "Everything correct, minus softmax on the same captions": lead_table(results, "everything"),
        "Binding, minus softmax on the same captions": lead_table(results, "binding"),
        "Binding, by length of the prompt": length_table(results),
        "Binding, by place of the clauses that matter": place_table(results),
        "Binding, by row of the picture": image_row_table(results, image_rows),
        "Binding, by language": language_table(results),
        "Ablations": ablation_table(results, preset),
        "Recall of facts by one layer": capacity_table(results),
        "Trainings": training_table(list(trainings.values())),
    }
    about = (
        f"Preset `{preset_name}`: {len(trainings)} of {len(wanted)} trainings; percent, in parentheses the 95 % "
        f"bootstrap interval over seeds and pictures. Not run: {', '.join(missing) or 'nothing'}."
    )
    for row in results.of("text encoder"):
        about += f" The text encoder of all arms: {row['parameters']} parameters, {row['steps']} steps before theirs."
    return "\n\n".join([about, *(f"## {name}\n\n{table}" for name, table in sections.items())]) + "\n"


def training_table(trainings: list[Row]) -> str:
    header = ["arm", "seed", "parameters", "trained", "steps", "batch", "seconds", "date", "torch", "commit"]
    keys = [
        "arm",
        "seed",
        "parameters",
        "trained_parameters",
        "steps",
        "batch_size",
        "seconds",
        "date",
        "torch",
        "commit",
    ]
    return markdown(header, [[str(row.get(key, "")) for key in keys] for row in trainings])


def draw_plots(results: Results, target: Path) -> None:
    plots.grouped_bars(
        target / "splits.png",
        {arm: {x: results.mean(arm, parts_of(x)) for x in SPLITS} for arm in MAIN_ARMS},
        "everything correct, %",
        {x: mean.mean for x in SPLITS if (mean := results.mean("chance", parts_of(x)))},
    )
    plots.grouped_bars(
        target / "lengths.png", {arm: length_means(results, arm) for arm in MAIN_ARMS}, "objects bound right, %"
    )
    image_rows = range(max(at for row in results.of("alignment") for of in row["bound_by_row"] for at, _ in of) + 1)
    plots.grouped_bars(
        target / "image_rows.png",
        {arm: {f"row {i + 1}": results.by_image_row(arm, i) for i in image_rows} for arm in MAIN_ARMS},
        "objects bound right, %",
    )
    recalls = results.of("recall")
    if recalls:
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in sorted(recalls, key=lambda row: row["facts"]):
            curves.setdefault(f"{row['layer']}, {row['head_dim']} x {row['head_dim']}", []).append(
                (row["facts"], row["accuracy"])
            )
        plots.recall_curves(target / "capacity.png", curves, recalls[0]["chance"])


def copy_pictures(preset: Preset, folder: Path, target: Path) -> None:
    """The sheets of the first seed, per arm, and the first captions that Latin letters can show side by side."""
    sheets = {arm: folder_of(folder, arm, preset.seeds[0]) / "pictures" / "same.png" for arm in MAIN_ARMS}
    sheets = {arm: path for arm, path in sheets.items() if path.exists()}
    for arm, path in sheets.items():
        shutil.copyfile(path, target / f"pictures-{arm.replace(' ', '-')}.png")
    scenes = scenes_of(preset, "same")
    descriptions = [scenes.description(i) for i in range(BATCH)]
    shown = [i for i, x in enumerate(descriptions) if x.language != "Chinese" and x.length == "medium"][:8]
    if sheets and shown:
        pictures = {arm: cut_sheet(path, preset.resolution, shown) for arm, path in sheets.items()}
        plots.side_by_side(target / "pictures.png", [descriptions[i].text for i in shown], pictures)
