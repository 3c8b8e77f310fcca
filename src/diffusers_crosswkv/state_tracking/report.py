"""Page and plot from the rows of the state tracking benchmark. Every figure in them is a row's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..evaluation.tables import NOT_RUN, markdown
from ..files import read_json_lines
from .automata import TASKS, TITLES
from .cells import ARMS, CURRICULUM, Row
from .plots import accuracy_curves
from .suite import LAYERS, ROWS, cell_of, cells_of
from .words import HELD_OUT, TRAINED_LENGTH

Groups = Mapping[tuple[str, str, int], Sequence[Row]]
REACH = 0.99
SHOWN = (TRAINED_LENGTH, 32, 64, 128, 256)
COMMAND = "python scripts/state_tracking.py"


def write_report(folder: Path) -> str:
    """Write `README.md` and `accuracy.png` beside the rows; returns the page.

    Raises:
        FileNotFoundError: there are no rows.
    """
    rows = read_json_lines(folder / ROWS)
    if not rows:
        raise FileNotFoundError(f"There must be rows in {folder / ROWS} to report, but there are none.")
    groups = grouped(rows)
    accuracy_curves(folder / "accuracy.png", groups)
    tasks = [task for task in TASKS if any(key[0] == task for key in groups)]
    parts = [introduction(rows), answer(groups), "![Accuracy against length](accuracy.png)"]
    parts += [section(task, groups) for task in tasks] + [why(groups), not_run(rows), made_with(rows)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    (folder / "README.md").write_text(page, encoding="utf-8")
    return page


def grouped(rows: Iterable[Row]) -> Groups:
    """The rows of all seeds, by task, arm and layers, in the order of the suite."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups[row["task"], row["arm"], row["layers"]].append(row)
    wanted = [(t, a, n) for t in TASKS for a in ARMS for n in LAYERS]
    return {key: groups[key] for key in wanted if key in groups}


def shown(shares: Mapping[str, float], length: int) -> str:
    return percent(shares[str(length)]) if str(length) in shares else NOT_RUN


def percent(share: float) -> str:
    """Never rounded up to 100."""
    return "100" if share == 1 else f"{min(100 * share, 99.99):.2f}"


def answer(groups: Groups) -> str:
    """The fewest layers with which each task holds to the longest length, all seeds."""
    lines = []
    for task in TASKS:
        for arm in ARMS:
            done = {n: groups[task, arm, n] for n in LAYERS if (task, arm, n) in groups}
            if done:
                at_trained, at_longest = (fewest(done, n) for n in (TRAINED_LENGTH, longest(groups)))
                lines.append([TITLES[task], arm, ", ".join(map(str, done)), at_trained, at_longest])
    header = ("task", "arm", "layers run", f"{REACH:.0%} at {TRAINED_LENGTH}", f"{REACH:.0%} at {longest(groups)}")
    return (
        f"## Fewest layers that do it\n\nWith so many layers every seed has at least {REACH:.0%} of all tokens right; "
        f"in words of {TRAINED_LENGTH} tokens, as trained, and of {longest(groups)}.\n\n" + markdown(header, lines)
    )


def fewest(done: Mapping[int, Sequence[Row]], length: int) -> str:
    """Of the numbers of layers that were run."""
    for layers, rows in done.items():
        if min(row["accuracy"].get(str(length), 0) for row in rows) >= REACH:
            return str(layers)
    return "none of them"


def longest(groups: Groups) -> int:
    return max(int(length) for rows in groups.values() for row in rows for length in row["accuracy"])


def section(task: str, groups: Groups) -> str:
    """All arms and layers of one task: every seed is shown, none is chosen."""
    lines = []
    for (name, arm, layers), rows in groups.items():
        if name != task:
            continue
        cells = [" / ".join(shown(row["accuracy"], n) for row in rows) for n in SHOWN]
        last = " / ".join(shown(row["last"], SHOWN[-1]) for row in rows)
        minutes = sum(row["seconds"] for row in rows) / len(rows) / 60
        lines.append([arm, str(layers), *cells, last, f"{rows[0]['parameters']:,}", f"{minutes:.1f}"])
    header = ("arm", "layers", *map(str, SHOWN), f"token {SHOWN[-1]}", "parameters", "minutes")
    sizes = f"{TASKS[task].vocabulary} tokens, {TASKS[task].classes} classes."
    return f"## {TITLES[task]}\n\n{sizes} {NOTES.get(task, '')}\n\n{markdown(header, lines)}".replace(" \n", "\n")


def why(groups: Groups) -> str:
    """What was learned: rates and decays of one layer on swaps."""
    lines = []
    for (task, arm, layers), rows in groups.items():
        if task == "s5_swaps" and layers == 1 and "mean_rate" in rows[0] and arm.startswith("wkv7"):
            for row in rows:
                rates, kept = (", ".join(f"{x:.4f}" for x in row[name][0]) for name in ("mean_rate", "mean_decay"))
                lines.append([arm, str(row["seed"]), rates, kept])
    if not lines:
        return ""
    return f"{WHY}\n\n{markdown(('arm', 'seed', 'mean rate of each head', 'mean decay of each head'), lines)}"


def not_run(rows: Sequence[Row]) -> str:
    """What of the whole suite has no row, and the command for it."""
    done = {cell_of(row) for row in rows}
    seeds = defaultdict(list)
    for cell in cells_of():
        if cell not in done:
            seeds[cell.task, cell.arm, cell.layers].append(cell.seed)
    if not seeds:
        return "## Not run\n\nNothing: every task, arm, number of layers and seed has a row."
    by_command = defaultdict(list)
    for (task, arm, layers), missing in seeds.items():
        by_command[task, layers, tuple(missing)].append(arm)
    lines = [
        f"- {TITLES[task]}, {layers} layer{'s' * (layers > 1)}, seed{'s' * (len(missing) > 1)} "
        f"{', '.join(map(str, missing))}: {'; '.join(arms)}"
        for (task, layers, missing), arms in by_command.items()
    ]
    total, count = len(cells_of()), sum(map(len, seeds.values()))
    return (
        f"## Not run\n\n{count} of {total} trainings have no row; `{COMMAND}` runs them all, `--jobs 8` eight at a "
        "time, and `--tasks`, `--arms`, `--layers`, `--seeds` some of them.\n\n" + "\n".join(lines)
    )


def made_with(rows: Sequence[Row]) -> str:
    def all_of(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    return (
        f"---\n\n{all_of('date')}; commit {all_of('commit')}; {all_of('processor')}, {all_of('cores')} cores shared "
        f"with other work, {all_of('threads')} thread per training; torch {all_of('torch')}."
    )


def introduction(rows: Sequence[Row]) -> str:
    """What was done, in the settings of the rows."""
    setups = {tuple(row["setup"].items()) for row in rows}
    trainings = " or ".join(
        f"{s['steps']:,} steps of {s['batch_size']} words, learning rate {s['learning_rate']:g}, tested on "
        f"{s['test_words']} words, width {s['width']}, heads of {s['head_dim']}"
        for s in map(dict, sorted(setups))
    )
    begin, end = CURRICULUM
    return INTRODUCTION.format(
        command=COMMAND, trained=TRAINED_LENGTH, held_out=HELD_OUT, trainings=trainings, begin=begin, end=end
    )


NOTES = {
    "s5_swaps": "Behind t swaps only the 60 permutations of the parity of t can be right: chance is 1.7 %.",
}
WHY = """## What a layer learns from swaps

A swap of two elements is a reflection: a rate of 2 along a removal key `(e_i - e_j) / sqrt(2)`, and a decay that
keeps all. A rate below 1 can merge the two or leave them, not swap them. Means over test tokens, over the channels of
each head:"""
INTRODUCTION = """# State tracking

This page is written by `{command}` from `rows.jsonl` beside it; no figure is typed.

- A word is read token by token, and behind every token the state of an automaton is asked for: the product so far of
  permutations or numbers, or what a regular language says. Trained on words of {trained} tokens, tested on longer
  ones. One in {held_out} beginnings of {trained} tokens is for tests alone: no test word begins like a word of
  training.
- **wkv7** is RWKV-7's layer with this package's scan, one update of the state per token. Its in-context rate goes to
  1, as in RWKV-7, or to 2, one rate per head, at most `1 + min(exp(w))`, so that no product of transitions can grow.
  **4 updates**: every token is written four times in a row, each time with a key of its own (DeltaProduct).
  **diagonal** is the same layer without the delta rule: a state that decays per channel. **softmax** is causal
  attention, half of its heads with ALiBi. All have the same blocks: norm, mixer, norm, MLP. The state before the first
  token is learned; softmax has a learned first token in its place.
- Percentages of right tokens among the first 16, 32, ... of a word, one figure per seed. **token 256** is of that
  token alone. **minutes**: of one training, beside other work.
- {trainings}. The last weights, no seed left out. With a rate to 2 the projection to values has weight decay, so that
  a layer which only turns its state writes nothing: small writes add up in long words. No other weight has any.
- S5 by all 120 elements, A5 and Z60 have a curriculum, the same for all arms: up to {begin:.0%} of the steps the words
  hold generators alone (swaps; cycles of three; thirds, quarters and fifths of a turn), from {end:.0%} on any element,
  in between a growing share. Tests hold any element."""
