"""Rows of results: what is measured with a trained model, and with what it is compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..environment import environment
from ..evaluation.alignment import Mean
from ..evaluation.kernel_rows import commit, processor
from . import rules
from .games import Games, Player, random_player
from .legality import Legality, chance_levels, held_out_games, measure_legality
from .lessons import MATCHES, Lessons, tokens_of
from .matches import ModelPlayer, play_match
from .players import cautious_player, greedy_player
from .probes import NO_PROBE, Reading, majority, positions, read_boards
from .training import MoveModel, Training, make_model

Row = dict[str, Any]
RULE_PLAYERS: dict[str, Callable[[np.random.Generator], Player]] = {
    "random": random_player,
    "greedy": greedy_player,
    "cautious": cautious_player,
}
SHOWN_GAME, SHOWN_MOVES = 0, (12, 28, 44)  # the first held-out game, not the best


@dataclass(frozen=True)
class Sizes:
    """How much is measured: held-out games, games to fit probes on and to test them on, games of a match."""

    held_out: int
    probed: tuple[int, int]
    match: int


def about_run(device: torch.device) -> Row:
    return {**environment(device), "processor": processor(), "commit": commit()}


def training_rows(training: Training, sizes: Sizes) -> list[Row]:
    """How the training went."""
    return [
        {
            "kind": "training",
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "games": training.step * training.plan.batch_size,
            "cpu_seconds": round(training.seconds, 1),
            "losses": training.losses,
        }
    ]


def legality_rows(training: Training, sizes: Sizes) -> list[Row]:
    """On games that are not among those of the training, with some positions to look at."""
    plan = training.plan
    seen = Lessons(plan.lesson, plan.batch_size, plan.seed).seen(plan.steps)
    games, left_out = held_out_games(sizes.held_out, seen)
    found = measure_legality(training.model, games)
    about = {"held_out": len(games.moves), "left_out": left_out, "distinct_training_games": len(seen)}
    shown = [board_row(training.model, games, t) for t in SHOWN_MOVES]
    return [{"kind": "legality", "source": "model", **about, **legality_columns(found)}, *shown]


def chance_rows(sizes: Sizes) -> list[Row]:
    """What is legal by chance, and the entropy of the legal moves, which no loss can fall below."""
    games, _ = held_out_games(sizes.held_out, set())
    number = np.bitwise_count(games.legal[games.legal > 0]).astype(float)
    floor = {"kind": "floor", "loss": float(np.log(number).mean()), "legal_moves": float(number.mean())}
    levels = chance_levels(games).items()
    return [floor, *({"kind": "legality", "source": name, **legality_columns(x)} for name, x in levels)]


def legality_columns(found: Legality) -> Row:
    by_move = [round(x, 4) for x in found.by_move]
    return {"share": interval(found.mean), "mass": round(float(np.nanmean(found.mass)), 5), "by_move": by_move}


@torch.no_grad()
def board_row(model: MoveModel, games: Games, t: int) -> Row:
    """The model's probabilities before move `t` of a game, beside the board."""
    before = games.boards[t].at(np.array([SHOWN_GAME]))
    logits = model(tokens_of(games.moves[[SHOWN_GAME], :t], following=True).to(model.device))[0, -1]
    black, white = (before.own, before.other) if before.black[0] else (before.other, before.own)
    squares = {"black": black, "white": white, "legal": before.moves}
    return {
        "kind": "board",
        "move": t + 1,
        "to_move": "black" if before.black[0] else "white",
        **{name: np.flatnonzero(rules.unpack(x)[0]).tolist() for name, x in squares.items()},
        "probabilities": [round(x, 4) for x in logits.softmax(-1).tolist()],
    }


def probe_rows(training: Training, sizes: Sizes) -> list[Row]:
    """Of the trained model, and of the same with its first random weights."""
    train, test = (positions(count, part) for part, count in enumerate(sizes.probed))
    rows = []
    for trained, model in (
        (True, training.model),
        (False, make_model(training.plan).to(training.model.device).eval()),
    ):
        for place, found in read_boards(model, train, test).items():
            rows.append({"kind": "probe", "trained": trained, "place": place, **reading_columns(found)})
    return rows


def majority_rows(sizes: Sizes) -> list[Row]:
    train, test = (positions(count, part) for part, count in enumerate(sizes.probed))
    return [{"kind": "probe", "place": NO_PROBE, **reading_columns(majority(train, test))}]


def reading_columns(found: Reading) -> Row:
    return {"squares": interval(found.squares), "discs": interval(found.discs)}


def match_rows(training: Training, sizes: Sizes) -> list[Row]:
    """The model against random moves."""
    name = f"{training.plan.mixer}, {training.plan.lesson}"
    return [match_row(ModelPlayer(training.model), name, "random", sizes.match)]


def player_rows(sizes: Sizes) -> list[Row]:
    """Players that know the rules against random moves."""
    found = []
    for number, (name, make) in enumerate(RULE_PLAYERS.items()):
        player = make(np.random.default_rng((MATCHES, 1, number)))
        found.append(match_row(player, name, "random", sizes.match))
    return found


def match_row(player: Player, name: str, opponent: str, count: int) -> Row:
    """The opponent has the same random numbers whoever it meets."""
    score = play_match(player, RULE_PLAYERS[opponent](np.random.default_rng((MATCHES, 0))), count)
    low, high = score.interval
    row = {"kind": "match", "player": name, "opponent": opponent, "games": score.games}
    row |= {"wins": score.wins, "draws": score.draws, "losses": score.losses}
    row["win_share"] = [round(x, 4) for x in (score.wins / score.games, low, high)]
    if isinstance(player, ModelPlayer):
        row |= {"choices": player.choices, "illegal_first_choices": player.illegal}
    return row


def interval(mean: Mean) -> list[float]:
    """Mean, and the two ends of its 95 % interval."""
    return [round(x, 5) for x in (mean.mean, mean.low, mean.high)]
