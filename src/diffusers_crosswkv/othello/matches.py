"""Matches of 1,000 games: a model that chooses by its own predictions, and players that know the rules."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from . import rules
from .games import Player, play_games
from .lessons import tokens_of
from .rules import Boards
from .training import MoveModel

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Score:
    """Of the first player against the second."""

    wins: int
    draws: int
    losses: int

    @property
    def games(self) -> int:
        return self.wins + self.draws + self.losses

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share of wins."""
        n, share = self.games, self.wins / self.games
        centre, spread = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
        return (centre - spread) / (1 + Z**2 / n), (centre + spread) / (1 + Z**2 / n)


class ModelPlayer:
    """Plays the legal move that `model` holds most likely; counts how often another move would have been its first.

    The rules only mask: the model sees the moves and nothing of the board.
    """

    def __init__(self, model: MoveModel):
        self.model, self.choices, self.illegal = model, 0, 0

    @torch.no_grad()
    def __call__(self, boards: Boards, moves: np.ndarray) -> np.ndarray:
        tokens = tokens_of(moves, following=True).to(self.model.device)
        logits = self.model(tokens)[:, -1].cpu().numpy()
        legal = rules.unpack(boards.moves)
        first = np.take_along_axis(legal, logits.argmax(-1)[:, None], -1)[:, 0]
        self.choices += len(legal)
        self.illegal += int((~first).sum())
        return np.where(legal, logits, -np.inf).argmax(-1)


def play_match(first: Player, second: Player, count: int) -> Score:
    """`first` is black in the first half of the games, white in the second."""
    first_is_black = np.arange(count) < (count + 1) // 2

    def choose(boards: Boards, moves: np.ndarray) -> np.ndarray:
        chosen = np.zeros(count, np.int64)
        firsts_turn = boards.black == first_is_black
        for player, turn in ((first, firsts_turn), (second, ~firsts_turn)):
            turn = turn & (boards.moves != 0)
            if turn.any():
                chosen[turn] = player(boards.at(turn), moves[turn])
        return chosen

    result = np.sign(play_games(choose, count).margin) * np.where(first_is_black, 1, -1)
    return Score(*(int((result == x).sum()) for x in (1, 0, -1)))
