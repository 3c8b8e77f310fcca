"""How often the move that a model holds most likely is legal, beside what can be had without knowing the board."""

from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.alignment import Mean, bootstrap
from . import rules
from .games import Games, keys, random_games
from .lessons import GAMES_AT_ONCE, HELD_OUT, tokens_of
from .rules import MOST_MOVES
from .training import MoveModel

BATCH = 128
GAMES_OF_CHANCE = 8 * GAMES_AT_ONCE  # that the move number's best guess is counted on


@dataclass(frozen=True)
class Legality:
    """Of each move of each game, `[N, 60]`, NaN behind its end.

    Args:
        hits: whether the move held most likely is legal: 0 or 1, or its probability for a guess by chance.
        mass: probability of all legal moves together.
    """

    hits: np.ndarray
    mass: np.ndarray

    @property
    def mean(self) -> Mean:
        """The share of all moves, with an interval over games, as moves of one game are alike."""
        found = bootstrap([np.nanmean(self.hits, axis=1).tolist()])
        assert found is not None
        return found

    @property
    def by_move(self) -> list[float]:
        return np.nanmean(self.hits, axis=0).tolist()


def held_out_games(count: int, seen: set[bytes]) -> tuple[Games, int]:
    """Games of random play without those in `seen`, and how many were left out for that."""
    games = random_games(count, (HELD_OUT,))
    new = np.array([key not in seen for key in keys(games.moves).tolist()])
    return Games(games.moves[new], [boards.at(new) for boards in games.boards]), int((~new).sum())


@torch.no_grad()
def measure_legality(model: MoveModel, games: Games) -> Legality:
    """Of the move held most likely among all 64 squares."""
    tokens = tokens_of(games.moves)
    probabilities = torch.cat([model(part.to(model.device)).softmax(-1).cpu() for part in tokens.split(BATCH)]).numpy()
    legal = rules.unpack(games.legal)
    best = probabilities.argmax(-1)[..., None]
    hits = np.take_along_axis(legal, best, -1)[..., 0].astype(float)
    mass = (probabilities * legal).sum(-1)
    over = games.legal == 0
    return Legality(np.where(over, np.nan, hits), np.where(over, np.nan, mass))


def chance_levels(games: Games) -> dict[str, Legality]:
    """A move at random, a move at random to an empty square, and the best guess for each move number."""
    legal, over = rules.unpack(games.legal), games.legal == 0
    number = legal.sum(-1)
    empty = MOST_MOVES - np.arange(MOST_MOVES)
    by_number = rules.unpack(random_games(GAMES_OF_CHANCE, (HELD_OUT, 1)).legal).mean(axis=0).argmax(-1)
    guessed = legal[:, np.arange(MOST_MOVES), by_number]
    shares = {
        "any square": number / rules.SQUARES,
        "any empty square": number / empty,
        "best guess for the move number": guessed.astype(float),
    }
    found = {name: np.where(over, np.nan, share) for name, share in shares.items()}
    return {name: Legality(share, share) for name, share in found.items()}
