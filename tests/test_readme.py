"""The README's example is code that runs."""

import json
import math
import re
from pathlib import Path

import pytest

from diffusers_crosswkv.alignment.report import Results, parts_of
from diffusers_crosswkv.alignment.tables import percent

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(make_pipeline, tmp_path, monkeypatch, capsys):
    pipeline = make_pipeline()
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("runs/quickstart/pipeline")
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    names: dict = {}
    exec(examples[0], names)
    assert names["image"].size == (8, 8)
    assert len(names["images"]) == 4
    exec(examples[1], names)
    assert names["student"].config.block_out_channels == (64, 128)
    assert re.fullmatch(r"\d+ bytes, whatever the prompt's length\n", capsys.readouterr().out)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link):
    assert (README.parent / link).exists()


def test_figures_are_those_of_the_rows():
    rows = (README.parent / "benchmarks/quickstart/rows.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[-1])
    found = row["agreement"]
    languages = ", ".join(f"{name} {share:.1%}" for name, share in found["per_language"].items())
    text = README.read_text(encoding="utf-8")
    for figure in (
        f"| {found['overall']:.1%} of {found['count']} |",
        f"| {languages} |",
        f"| {row['held_out_accuracy']:.1%} |",
        f"| {row['training_seconds']:.0f} s |",
        f"| {row['generate_seconds']:.0f} s |",
    ):
        assert figure in text


def rows_of(name):
    lines = (README.parent / "benchmarks" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def of(rows, **wanted):
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def alignment_figures():
    results = Results(rows_of("alignment/rows.jsonl"))
    shares = {arm: results.mean(arm, "same").mean for arm in ("softmax", "state", "paper")}
    yield (
        "everything right in {softmax:.0%} of pictures (softmax), {state:.0%} (`state`), {paper:.0%} (`paper`)",
        shares,
    )
    bound = {arm: results.mean(arm, parts_of("very long"), "binding").mean for arm in ("softmax", "state")}
    yield "objects bound right {softmax:.0%} (softmax), {state:.0%} (`state`)", bound


def alignment_page_rows():
    results = Results(rows_of("alignment/rows.jsonl"))
    for split, metric in (
        ("same", "everything"),
        ("same", "binding"),
        ("long", "binding"),
        ("very long", "binding"),
        ("very long", "everything"),
    ):
        means = [results.mean(arm, parts_of(split), metric) for arm in ("softmax", "state")]
        lead = results.lead("state", "softmax", split, metric)
        yield " | ".join(["", *(percent(mean, interval=False) for mean in means), f"{percent(lead)} |"])


def test_figures_of_the_alignment_page_are_those_of_the_rows():
    text = (README.parent / "benchmarks/alignment/README.md").read_text(encoding="utf-8")
    assert [row for row in alignment_page_rows() if row not in text] == []


def rounded_up(share):
    """To a tenth of a percent, for what is said to be at most so much."""
    return math.ceil(1000 * share) / 1000


def tracking_figures():
    rows = of(rows_of("state_tracking/rows.jsonl"), layers=1)
    swaps = of(rows, task="s5_swaps")
    arms = ("wkv7, rate to 1", "diagonal", "softmax")
    ours = of(swaps, arm="wkv7, rate to 2")
    yield (
        "at least {least:.1%} of tokens with {seeds} seeds",
        {
            "least": math.floor(1000 * min(row["accuracy"]["256"] for row in ours)) / 1000,
            "seeds": len(ours),
        },
    )
    yield (
        "rate to 1 {0:.1%}, diagonal decay {1:.1%}, softmax {2:.1%}",
        [max(row["accuracy"]["256"] for row in of(swaps, arm=arm)) for arm in arms],
    )
    every, four = rows_of("state_tracking/rows.jsonl"), "wkv7, rate to 2, 4 updates"
    groups = {task: of(rows, task=task, arm=four, seed=0)[0]["accuracy"] for task in ("s5", "a5", "z60")}
    yield (
        "S5 {0:.1%} of tokens at 16, {1:.1%} at 256; A5 {2:.1%} and {3:.1%}; Z60 {4:.1%} and {5:.1%}",
        [accuracy[length] for accuracy in groups.values() for length in ("16", "256")],
    )
    others = [max(r["accuracy"]["16"] for r in of(every, task=task) if r["arm"] != four) for task in groups]
    yield (
        "all other arms at 16 at most {0:.1%}, {1:.1%}, {2:.1%}",
        [rounded_up(accuracy) for accuracy in others],
    )
    longest = [
        only(of(rows, task=task, arm="wkv7, rate to 2")) for task in ("parity", "even_pairs", "cycle_navigation")
    ]
    yield (
        "parity {0:.1%}, even pairs {1:.1%}, cycle navigation {2:.1%}, with four updates {3:.1%}",
        [row["accuracy"]["256"] for row in (*longest, only(of(rows, task="cycle_navigation", arm=four)))],
    )
    numbers = {row["arm"]: row["accuracy"]["16"] for row in of(rows, task="modular_arithmetic")}
    mine = numbers.pop("wkv7, rate to 2")
    yield (
        "modular arithmetic {0:.1%}, other arms {1:.1%} at most",
        [mine, rounded_up(max(numbers.values()))],
    )


def othello_figures():
    rows = rows_of("othello/rows.jsonl")
    shares = {row["mixer"]: row["share"][0] for row in of(rows, kind="legality", source="model", lesson="legal")}
    yield "{wkv7:.1%} of first choices legal (softmax {softmax:.1%})", shares
    wins = {row["player"].split(",")[0]: row for row in of(rows, kind="match") if row["player"].endswith(", play")}
    yield (
        "wins {0[wins]} of {0[games]:,} games against random moves (softmax {1[wins]})",
        [wins["wkv7"], wins["softmax"]],
    )
    discs = {(row.get("mixer"), row.get("place")): row["discs"][0] for row in of(rows, kind="probe", trained=True)}
    yield (
        "{0:.1%} of discs from the last layer (softmax {1:.1%}), but none from the matrix state itself: {2:.1%}",
        [*(discs[mixer, "layer 2"] for mixer in ("wkv7", "softmax")), discs["wkv7", "state 2"]],
    )
    guess = only(of(rows, place="majority"))
    yield "a guess {discs[0]:.1%}", guess


def robustness_figures():
    rows = rows_of("robustness/rows.jsonl")
    for name in ("as in training", "unseen wording", "medium, digit last", "long, digit first"):
        found = {r["arm"]: r["right"] for r in of(rows, kind="prompts", prompts=name, endoftext=True)}
        yield name + ": `state` {state:.1%}, softmax {softmax:.1%}", found
        if name == "as in training":
            yield "`prefix` {prefix:.1%}, `paper` {paper:.1%}", found
    training = of(rows, kind="training", arm="state")[0]
    found = [layer for look in training["looks"] for layer in look["layers"].values()]
    assert all(layer["finite"] for layer in found)
    yield (
        "all finite over {steps:,} steps, no number above {largest}",
        {
            "steps": training["train_steps"],
            "largest": math.ceil(max(layer["max_abs"] for layer in found)),
        },
    )


def pipeline_figures():
    rows = rows_of("pipeline/cpu.jsonl")
    assert len({row["processor"] for row in rows}) == 1
    steps = of(rows, direction="step", width=256)
    sides = [(length, side) for length in (77, 4000) for side in ("softmax", "state")]
    times = [only(of(steps, text_tokens=length, implementation=side))["median_ms"] for length, side in sides]
    yield "{0:.0f} and {1:.0f} ms at 77 tokens, {2:.0f} and {3:.0f} ms at 4,000", times
    loaded, int8 = (
        {side: only(of(rows, direction=f"process: {option}", implementation=side)) for side in ("softmax", "state")}
        for option in ("as loaded", "int8")
    )
    peaks, small = ({side: row["peak_bytes"] / 1e9 for side, row in found.items()} for found in (loaded, int8))
    assert max(peaks.values()) < 1.9
    yield "{state:.2f} GB at its height as loaded, softmax {softmax:.2f} GB", peaks
    yield "int8 weights {state:.2f} and {softmax:.2f} GB", small
    yield "an image takes {state:.0f} and {softmax:.0f} s", {x: row["image_ms"] / 1e3 for x, row in loaded.items()}


def only(rows):
    (row,) = rows
    return row


def training_figures():
    rows = of(rows_of("training_speed/cpu.jsonl"), kind="dir7_s", direction="all", implementation="state")
    rows = [row for row in rows if not (row["checkpointing"] or row["compiled"] or row["captions"])]

    def speed(latents, length):
        return only(of(rows, tokens=latents**2, text_tokens=length))["speed"]

    of_lengths = {length: [speed(latents, length) for latents in (32, 64)] for length in (77, 512, 2048)}
    yield (
        "{0:.2f} of softmax's images per second at 77 tokens and small images, {1:.2f} with larger ones",
        of_lengths[77],
    )
    yield "at 512 tokens with {0:.2f} and {1:.2f}", of_lengths[512]
    yield "at 2,048 with {0:.2f} and {1:.2f}", of_lengths[2048]


FIGURES = (
    training_figures,
    pipeline_figures,
    alignment_figures,
    tracking_figures,
    othello_figures,
    robustness_figures,
)


@pytest.mark.parametrize("figures", FIGURES, ids=lambda f: f.__name__)
def test_claims_are_those_of_the_rows(figures):
    text = " ".join(README.read_text(encoding="utf-8").split())
    for template, values in figures():
        sentence = template.format(*values) if isinstance(values, list) else template.format_map(values)
        assert sentence in text
