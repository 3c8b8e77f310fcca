"""Page and plots from the rows of the Othello benchmark. Every figure in them is a row's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..evaluation.pages import when_and_where_from
from ..evaluation.tables import NOT_RUN, markdown
from ..files import read_json_lines, write_json_lines, write_whole
from . import plots
from .measures import Row
from .probes import NO_PROBE
from .rules import MOST_MOVES
from .suite import DEFAULT_LESSONS, MIXERS, collect_rows

NAMES = {"wkv7": "WKV-7", "softmax": "softmax"}
STYLES: dict[str, dict[str, Any]] = {"legal": {}, "next": {"ls": "--"}, "play": {"ls": ":"}}


class Results:
    """Rows, asked for by what they hold."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)
        self.trainings = [(row["mixer"], row["lesson"]) for row in self.of("training")]
        order = [(mixer, lesson) for lesson in ("legal", "next", "play") for mixer in MIXERS]
        self.trainings.sort(key=order.index)

    def of(self, kind: str, **wanted: object) -> list[Row]:
        return [r for r in self.rows if r["kind"] == kind and all(r.get(k) == v for k, v in wanted.items())]

    def one(self, kind: str, **wanted: object) -> Row:
        (row,) = self.of(kind, **wanted)
        return row


def write_report(folder: Path, report: Path) -> str:
    """Write `rows.jsonl`, `README.md` and plots into `report` from the rows of `folder`; returns the page.

    Without rows in `folder`, those that `report` holds already are taken.

    Raises:
        FileNotFoundError: there are no rows of a training in either.
    """
    path, rows = report / "rows.jsonl", collect_rows(folder)
    if rows:
        write_json_lines(path, rows)
    results = Results(read_json_lines(path))
    if not results.trainings:
        raise FileNotFoundError(
            f"There are no rows of a training in {folder} or {path}; run it without --report-only."
        )
    parts = [
        INTRODUCTION,
        run(results),
        summary(results),
        legality(results, report),
        boards(results, report),
        probes(results, report),
    ]
    parts += [matches(results), trainings(results, report), NOT_MEASURED, missing(results)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(report / "README.md", page.encode())
    return page


def run(results: Results) -> str:
    """Where, when and with what."""
    first = results.of("training")[0]
    return (
        f"{first['processor']}, {first['threads']} of {first['cores']} cores; {when_and_where_from(results.rows)}; "
        f"torch {first['torch']}. All models: {first['layers']} blocks of width {first['width']}, heads of "
        f"{first['head_dim']}, {first['batch_size']} games a step, Muon with a rate of {first['learning_rate']:g}, "
        f"seed {first['seed']}."
    )


def summary(results: Results) -> str:
    """What the tables below say, for those who read one paragraph."""
    said = []
    for mixer in MIXERS:
        name = NAMES[mixer]
        for row in results.of("legality", source="model", mixer=mixer, lesson="legal"):
            said.append(f"- **{name}**: of its first choices on held-out games {percent(row['share'])} are legal.")
        read = results.of("probe", mixer=mixer, trained=True)
        if read:
            best = max(read, key=lambda row: row["discs"][0])
            before = results.one("probe", mixer=mixer, trained=False, place=best["place"])
            said.append(
                f"- **{name}**: a linear probe reads {percent(best['discs'])} of the discs from `{best['place']}`, "
                f"and {percent(before['discs'])} from the same place of the untrained model."
            )
        states = [row for row in read if row["place"].startswith("state")]
        if states:
            best, guess = max(states, key=lambda row: row["discs"][0]), results.one("probe", place=NO_PROBE)
            said.append(
                f"- **{name}**: from the matrix state itself at most {percent(best['discs'])}, where a guess from the "
                f"move number gets {percent(guess['discs'])}."
            )
        for row in results.of("match", mixer=mixer, lesson="play", opponent="random"):
            games, wins = row["games"], row["wins"]
            said.append(
                f"- **{name}** wins {wins} of {games} games against random moves: {percent(row['win_share'])}."
            )
    return "\n".join(said)


def legality(results: Results, report: Path) -> str:
    """Share of legal first choices, by training, beside chance; over the moves of a game."""
    chance = [row for row in results.of("legality") if row["source"] != "model"]
    table, curves = [], {}
    moves = range(1, MOST_MOVES + 1)
    for mixer, lesson in results.trainings:
        for row in results.of("legality", source="model", mixer=mixer, lesson=lesson):
            name = f"{NAMES[mixer]}, `{lesson}`"
            table.append([name, percent(row["share"]), f"{100 * row['mass']:.1f} %", str(row["held_out"])])
            shares = [100 * x for x in row["by_move"]]
            curves[f"{NAMES[mixer]}, {lesson}"] = (moves, shares, {"color": plots.COLOURS[mixer], **STYLES[lesson]})
    for row in chance:
        table.append([row["source"], percent(row["share"]), "", ""])
    marks = {row["source"]: 100 * row["share"][0] for row in chance}
    plots.lines(report / "legal.png", curves, ("move of the game", "legal first choices, %"), marks)
    header = ("model or chance", "legal first choices", "probability of all legal moves", "held-out games")
    return "\n\n".join(
        [
            "## Is the move that the model expects legal?",
            markdown(header, table),
            HELD_OUT_SAID.format(", ".join(str(row["left_out"]) for row in results.of("legality", source="model"))),
            "![Share of legal first choices by move number](legal.png)",
        ]
    )


def boards(results: Results, report: Path) -> str:
    shown = {NAMES[mixer]: results.of("board", mixer=mixer, lesson="legal") for mixer in MIXERS}
    shown = {name: of for name, of in shown.items() if of}
    if not shown:
        return ""
    plots.boards(report / "boards.png", shown)
    return f"{BOARDS_SAID}\n\n![Boards with a model's probabilities](boards.png)"


def probes(results: Results, report: Path) -> str:
    """Accuracy of reading the board, by place, with the untrained models as control."""
    found = [row for row in results.of("probe") if row["place"] != NO_PROBE]
    if not found:
        return ""
    guess = results.one("probe", place=NO_PROBE)
    table, readings = [], {}
    for mixer in MIXERS:
        own = {(row["place"], row["trained"]): row for row in found if row["mixer"] == mixer}
        for place in dict.fromkeys(place for place, _ in own):
            cells = [percent(own[place, trained][what]) for what in ("discs", "squares") for trained in (True, False)]
            table.append([f"{NAMES[mixer]}, {place}", *cells])
        for trained in (True, False):
            of = {place: [100 * x for x in row["discs"]] for (place, t), row in own.items() if t == trained}
            style = {"color": plots.COLOURS[mixer], "mfc": plots.COLOURS[mixer] if trained else "white"}
            if of:
                readings[f"{NAMES[mixer]}, {'trained' if trained else 'first weights'}"] = (of, style)
    plots.places(report / "probes.png", readings, {"majority": 100 * guess["discs"][0]})
    table.append(
        ["majority class of square and move number", percent(guess["discs"]), "", percent(guess["squares"]), ""]
    )
    header = ("read from", "discs", "discs, untrained", "all squares", "all squares, untrained")
    return "\n\n".join(
        [
            "## Does it keep a board?",
            PROBES_SAID,
            markdown(header, table),
            "![Discs read right by a linear probe](probes.png)",
        ]
    )


def matches(results: Results) -> str:
    table = []
    rows = results.of("match")
    for row in [row for owner in (None, *results.trainings) for row in rows if owner_of(row) == owner]:
        name, opponent = row["player"], row["opponent"]
        if "mixer" in row:
            name = f"{NAMES[row['mixer']]}, `{row['lesson']}`"
        counts = [str(row[x]) for x in ("games", "wins", "draws", "losses")]
        illegal = f"{100 * row['illegal_first_choices'] / row['choices']:.1f} %" if "choices" in row else ""
        table.append([name, opponent, *counts, percent(row["win_share"]), illegal])
    header = ("player", "against", "games", "won", "drawn", "lost", "won (95 %, Wilson)", "first choice illegal")
    return "\n\n".join(
        [
            "## Does it play better than random?",
            MATCHES_SAID,
            markdown(header, table),
        ]
    )


def owner_of(row: Row) -> tuple[str, str] | None:
    return (row["mixer"], row["lesson"]) if "mixer" in row else None


def trainings(results: Results, report: Path) -> str:
    table, curves = [], {}
    for mixer, lesson in results.trainings:
        row = results.one("training", mixer=mixer, lesson=lesson)
        start = f"`{row['start_from']}`" if row["start_from"] else "random weights"
        cells = [str(row["parameters"]), str(row["steps"]), str(row["games"]), f"{row['cpu_seconds'] / 60:.1f}"]
        table.append([f"{NAMES[mixer]}, `{lesson}`", start, *cells])
        if row["losses"] and lesson == "legal":
            steps, losses = zip(*row["losses"], strict=True)
            curves[NAMES[mixer]] = (steps, losses, {"color": plots.COLOURS[mixer]})
    parts = [
        "## The trainings",
        LESSONS_SAID,
        markdown(("model", "starts from", "parameters", "steps", "games", "minutes of one core"), table),
    ]
    if curves:
        floor = {"entropy of the legal moves": results.one("floor")["loss"]}
        plots.lines(report / "learning.png", curves, ("step", "loss of `legal`, nats per move"), floor)
        parts.append("![Loss by step](learning.png)")
    return "\n\n".join(parts)


def missing(results: Results) -> str:
    """What this page has no rows of, with the commands."""
    wanted = [(mixer, lesson) for lesson in (*DEFAULT_LESSONS, "next") for mixer in MIXERS]
    absent = [
        f'- {NAMES[mixer]}, `{lesson}`: `make othello ARGS="--mixers {mixer} --lessons {lesson}"`'
        for mixer, lesson in wanted
        if (mixer, lesson) not in results.trainings
    ]
    absent.append('- 8 blocks of width 512, as Othello-GPT has them, on a GPU: `make othello ARGS="--preset large"`')
    return f"**{NOT_RUN}** here:\n\n" + "\n".join(absent)


def percent(values: list[float]) -> str:
    mean, low, high = (100 * x for x in values)
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"


INTRODUCTION = """# Othello from move sequences

This page is written by `scripts/othello.py` from `rows.jsonl` beside it; no figure is typed.

A model reads the moves of an Othello game, one token each, and predicts the next one: the protocol of Othello-GPT
(Li et al., arXiv:2210.13382) on games of random legal play. It is never told of a board, of rules, or of passes.
**WKV-7** is a stack of RWKV-7 blocks, whose only memory is one matrix per head; **softmax** is the same stack with
causal attention over all moves. Both have an embedding per place in the game, the same steps and the same games.
Intervals are of 95 %, over games, of one training each: they say nothing about another seed."""

HELD_OUT_SAID = """Held-out games that the training had too were left out (by training: {}). Openings are few, so every
model has met the first positions of the games; the plot shows the later ones."""

BOARDS_SAID = """Three positions of the first held-out game: legal moves are framed, numbers are the model's
probabilities in percent, red where the move is not legal. The model has seen the moves alone, never a board."""

PROBES_SAID = """A linear probe (logistic regression for all 64 squares, its weight decay chosen on games that are
held back) tells of each square whether it is empty, the mover's or the opponent's. `layer 0` is the embedding, `layer
n` the residual stream behind block n, `state n` the whole matrix state of block n, which is many more numbers than a
layer. **untrained** is the same probe on the model before its first step: a random recurrence keeps much of what was
played, so only what is above it was learned. **discs** counts the squares that hold one, since which squares are empty
follows from the list of moves. What is not above **majority** was not found: by one linear map, fitted to these
positions."""

MATCHES_SAID = """A model plays the move that it holds most likely among the legal ones: the rules mask, nothing else
does; **first choice illegal** says how often the mask was needed. Each player is black in half of its games. `greedy`
turns the most discs. `cautious` looks one move ahead (corners, no squares beside them, few answers), and the lesson
`play` teaches its moves, in games where one side is `cautious` with one move in ten at random and the other plays at
random. So `play` imitates that player from the moves alone, and `cautious` is its ceiling."""

LESSONS_SAID = """- `legal`: the target is the uniform distribution over all legal moves. In games of random play it is
  exactly the expectation of the next move: the same optimum as `next` with less noise, for small numbers of games.
- `next`: the target is the move that was played, as Othello-GPT was trained, on 20 million games.
- `play`: goes on from `legal`; the target is what `cautious` would do, uniform where it does not care.

The loss of `legal` and `next` cannot fall below the entropy of the legal moves."""

NOT_MEASURED = "## What was not run"
