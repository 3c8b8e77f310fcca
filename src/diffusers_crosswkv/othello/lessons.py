"""What models are trained on: batches of games and, for every move of them, which answers count as right."""

from dataclasses import dataclass

import numpy as np
import torch

from . import rules
from .games import Games, keys, play_games, random_games
from .players import cautious_moves, lesson_player
from .rules import NONE

LESSONS = ("next", "legal", "play")
START = rules.SQUARES  # the token before the first move
VOCABULARY = rules.SQUARES + 1
GAMES_AT_ONCE = 1024  # are drawn together; a batch is a part of them
TRAINING, LESSON_GAMES, HELD_OUT, PROBED, MATCHES = range(5)  # the first numbers of seeds, so that none serves twice


@dataclass(frozen=True)
class Batch:
    """`tokens` `[B, 60]`, the start and the moves but the last; `targets` `[B, 60, 64]`, a distribution over squares,
    or zeros where the game is over."""

    tokens: torch.Tensor
    targets: torch.Tensor


def training_games(lesson: str, seed: int, number: int) -> Games:
    """The `number`-th `GAMES_AT_ONCE` games of a training."""
    if lesson != "play":  # `next` and `legal` see the same games
        return random_games(GAMES_AT_ONCE, (TRAINING, seed, number))
    rng = np.random.default_rng((LESSON_GAMES, seed, number))
    return play_games(lesson_player(GAMES_AT_ONCE, rng), GAMES_AT_ONCE)


def answers(lesson: str, games: Games) -> np.ndarray:
    """Squares that count as right, as bits `[N, 60]`, all of them equally: 0 behind the end of a game.

    `next`: the move that was played, as Othello-GPT is trained. `legal`: all legal moves. In games of random play that
    is the expectation of `next`, the same optimum with less noise. `play`: what the cautious player would do here.
    """
    if lesson == "next":
        return rules.bit(games.moves)
    if lesson == "legal":
        return games.legal
    return np.stack([cautious_moves(boards) for boards in games.boards[:-1]], axis=1)


def batch_of(moves: np.ndarray, right: np.ndarray) -> Batch:
    """From moves `[B, 60]` and right answers `[B, 60]`, bits."""
    targets = torch.from_numpy(rules.unpack(right)).float()
    return Batch(tokens_of(moves), targets / targets.sum(-1, keepdim=True).clamp_min(1))


def tokens_of(moves: np.ndarray, following: bool = False) -> torch.Tensor:
    """The start and the moves `[B, T]` as tokens: `[B, T]` without the last, from which nothing follows.

    Args:
        following: keep the last, `[B, 1 + T]`, as one more move is asked for.
    """
    tokens = np.insert(np.where(moves == NONE, START, moves), 0, START, axis=1)
    return torch.from_numpy(tokens if following else tokens[:, :-1])


class Lessons:
    """Batches by number; any of them can be asked for, in order it is quick."""

    def __init__(self, lesson: str, batch_size: int, seed: int):
        self.lesson, self.batch_size, self.seed, self.number = lesson, batch_size, seed, -1
        self.per_draw = GAMES_AT_ONCE // batch_size
        self.moves = self.right = np.empty(0)

    def batch(self, step: int) -> Batch:
        number, place = divmod(step, self.per_draw)
        if number != self.number:
            games = training_games(self.lesson, self.seed, number)
            self.number, self.moves, self.right = number, games.moves, answers(self.lesson, games)
        chosen = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return batch_of(self.moves[chosen], self.right[chosen])

    def seen(self, steps: int) -> set[bytes]:
        """All games of `steps` batches."""
        draws = -(-steps // self.per_draw)
        found = [keys(training_games(self.lesson, self.seed, number).moves) for number in range(draws)]
        return set(np.concatenate(found)[: steps * self.batch_size].tolist())
