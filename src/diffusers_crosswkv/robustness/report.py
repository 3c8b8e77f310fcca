"""Tables, plots and a page from the rows that `robustness.suite` left. Every figure in them is a row's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..alignment.plots import grouped_bars
from ..alignment.tables import percent
from ..data.digits import LANGUAGES
from ..evaluation.alignment import Mean
from ..evaluation.pages import when_and_where_from
from ..evaluation.tables import NOT_RUN, markdown
from ..files import write_json_lines, write_whole
from .arms import ARMS, PRESETS
from .measuring import TEXTS, Row
from .plots import Curves, state_curves
from .prompt_sets import PROMPT_SETS
from .suite import rows_of

STATISTICS = {"rms": "root mean square", "stable_rank": "stable rank"}
COMMAND = "make robustness"
CHANCE = 0.1


def write_report(preset_name: str, runs: Path, folder: Path) -> str:
    """Write rows, plots and `README.md` to `folder` from what lies in `runs`; returns the page.

    Raises:
        FileNotFoundError: there are no rows.
    """
    rows = rows_of(runs, ARMS)
    write_json_lines(folder / "rows.jsonl", rows)
    draw_plots(rows, folder)
    page = make_page(preset_name, rows)
    write_whole(folder / "README.md", page.encode())
    return page


def of_kind(rows: Sequence[Row], kind: str, **wanted: object) -> dict[str, Row]:
    """By arm."""
    return {r["arm"]: r for r in rows if r["kind"] == kind and all(r.get(k) == v for k, v in wanted.items())}


def draw_plots(rows: Sequence[Row], folder: Path) -> None:
    """Of what there is."""
    training = {arm: panels(partial(over_training, row)) for arm, row in of_kind(rows, "training").items()}
    sampling = {arm: panels(partial(over_sampling, row)) for arm, row in of_kind(rows, "sampling").items()}
    lengths = {
        f"{arm}, {text}": panels(partial(over_lengths, row, text))
        for arm, row in of_kind(rows, "lengths").items()
        for text in TEXTS
    }
    if training:
        state_curves(folder / "states_training.png", training, "training step")
    if sampling:
        state_curves(folder / "states_sampling.png", sampling, "denoising step")
    if lengths:
        state_curves(folder / "states_lengths.png", lengths, "tokens of the prompt", log=True)
    bars = {arm: {name.replace(", ", ",\n"): mean_of(rows, arm, name, True) for name in PROMPT_SETS} for arm in ARMS}
    grouped_bars(folder / "prompts.png", bars, "digits read as asked, %", dict.fromkeys(bars[ARMS[0]], CHANCE))


def panels(curves: Callable[[str], Curves]) -> Mapping[str, Curves]:
    return {title: curves(statistic) for statistic, title in STATISTICS.items()}


def over_training(row: Row, statistic: str) -> Curves:
    looks = row["looks"]
    return {name: [(look["step"], look["layers"][name][statistic]) for look in looks] for name in looks[0]["layers"]}


def over_sampling(row: Row, statistic: str) -> Curves:
    return {name: list(enumerate(found[statistic], start=1)) for name, found in row["layers"].items()}


def over_lengths(row: Row, text: str, statistic: str) -> Curves:
    found = row["texts"][text]
    return {
        name: [(tokens, layers[name][statistic]) for tokens, layers in zip(row["tokens"], found, strict=True)]
        for name in found[0]
    }


def mean_of(rows: Sequence[Row], arm: str, prompts: str, endoftext: bool) -> Mean | None:
    row = of_kind(rows, "prompts", prompts=prompts, endoftext=endoftext).get(arm)
    return None if row is None else Mean(row["right"], row["low"], row["high"], row["drawn"])


def prompt_table(rows: Sequence[Row], endoftext: bool) -> str:
    present = [row for row in rows if row["kind"] == "prompts" and row["endoftext"] == endoftext]
    tokens = {row["prompts"]: "{} to {}".format(*row["tokens"]) for row in present}
    lines = [
        [name, tokens.get(name, ""), *(percent(mean_of(rows, arm, name, endoftext)) for arm in ARMS)]
        for name in PROMPT_SETS
    ]
    return markdown(["prompts", "tokens", *ARMS], lines)


def language_table(rows: Sequence[Row]) -> str:
    """Over the prompt sets that all arms with rows were given, with the prefix of training."""
    given: dict[str, dict[str, Row]] = {arm: {} for arm in ARMS}
    for row in rows:
        if row["kind"] == "prompts" and row["endoftext"]:
            given[row["arm"]][row["prompts"]] = row
    sets = [set(of) for of in given.values() if of]
    common = set.intersection(*sets) if sets else set()
    lines = []
    for language in LANGUAGES:
        shares = []
        for of in given.values():
            share = sum(of[name]["by_language"][language] for name in common) / len(common) if of and common else None
            shares.append(NOT_RUN if share is None else f"{share:.1%}")
        lines.append([language, *shares])
    return markdown(["language", *ARMS], lines)


def bounds_table(rows: Sequence[Row]) -> str:
    """The largest figures that any layer had at any time."""
    lines = []
    for kind in ("training", "sampling", "lengths"):
        for arm, row in of_kind(rows, kind).items():
            found = statistics_in(row)
            finite = [x for x in found if x["finite"]]
            if not finite:
                lines.append([kind, arm, "**none**", "", "", ""])
                continue
            ranks = [x["stable_rank"] for x in finite]
            lines.append(
                [
                    kind,
                    arm,
                    "yes" if len(finite) == len(found) else f"**{len(found) - len(finite)} of {len(found)} not**",
                    *(f"{max(x[name] for x in finite):.3g}" for name in ("max_rms", "max_abs")),
                    f"{min(ranks):.2f} to {max(ranks):.2f}",
                ]
            )
    header = ["over", "fusion", "all finite", "largest RMS of a head", "largest number", "stable rank of a layer"]
    return markdown(header, lines)


def statistics_in(value: object) -> list[dict]:
    """Every `StateStatistics` in a row, lists over steps taken apart."""
    if isinstance(value, dict) and "stable_rank" in value:
        if not isinstance(value["stable_rank"], list):
            return [value]
        return [dict(zip(value, at, strict=True)) for at in zip(*value.values(), strict=True)]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for part in inside for found in statistics_in(part)]


def make_page(preset_name: str, rows: Sequence[Row]) -> str:
    preset, first = PRESETS[preset_name], rows[0]
    missing = [arm for arm in ARMS if not of_kind(rows, "prompts").get(arm)]
    parts = [
        INTRODUCTION.format(steps=first["train_steps"], command=COMMAND),
        f"Preset `{preset_name}`; {when_and_where_from(rows)}; {first['processor']}, torch "
        f"{first['torch']}, diffusers {first['diffusers']}; one training per arm, seed {first['seed']}; parameters: "
        + ", ".join(f"{arm} {row['parameters']:,}" for arm, row in of_kind(rows, "prompts").items())
        + ".",
    ]
    if missing:
        parts.append(f"**{NOT_RUN}**: {', '.join(missing)}. Command: `{COMMAND}`.")
    parts += [
        "## Prompts",
        f"Share of digits read as asked, {preset.drawn} per language, guidance {first['guidance_scale']:g}, "
        f"{first['sampling_steps']} steps, with its 95 % interval; chance is {CHANCE:.0%}. With `<|endoftext|>` "
        "before the prompt, as all arms were trained:",
        prompt_table(rows, True),
        "![bars](prompts.png)",
        "The same pictures' seeds, without it (the paper's section 4.4; nothing was trained anew):",
        prompt_table(rows, False),
        "By language, the mean of the prompt sets that every arm was given:",
        language_table(rows),
        PROMPTS_MEAN,
        "## States",
        bounds_table(rows),
        STATES_MEAN,
        *(f"![{name}]({name}.png)" for name in ("states_training", "states_sampling", "states_lengths")),
    ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """# Robustness of prompts, and stability of states

The paper's sections 4.4 and 4.7 as a command. Four models that differ in their cross-attention alone learn
scikit-learn's 1,797 digits by the quickstart's recipe, {steps:,} steps each, from captions of a few words in four
languages. Then they are given prompts that training did not have, and the states of all layers are looked at: while
training goes on, while an image is drawn, and as a prompt grows.

Written by `{command}`; rows in [rows.jsonl](rows.jsonl)."""
PROMPTS_MEAN = """What this does not show: prompts of any length, and pictures of more than one object, are the subject
of the [alignment benchmark](../alignment/README.md), whose models are trained on long captions too. Here the long
prompts, and the words of unseen wordings, are far from everything that was trained, for softmax as for the others.
CLIP's tokenizer writes everything in lower case, so upper case changes nothing here; it would with other text
encoders. A share near chance that is the same for all prompts is that of a model which has not learned to read them:
all prompts start from the same noise."""
STATES_MEAN = """RMS is the root mean square of a head's numbers; stable rank is `||S||_F^2 / ||S||_2^2`, 1 if a state
has one direction, the shorter of its sides at most. Training: four prompts, noise as the image, the weights of that
step. Sampling: four prompts and the empty one of guidance, after every step; in `state` fusion the image reads the
prompt's state, which no step changes. Lengths: one prompt of so many tokens, much longer than any of training; in
`paper` fusion a prompt leaves no state."""
