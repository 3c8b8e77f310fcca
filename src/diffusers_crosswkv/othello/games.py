"""Games as sequences of moves, played by vectorised players, and drawn by seed for training and for tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import rules
from .rules import MOST_MOVES, NONE, Boards

# Of positions `[N]` and the moves that led there, `[N, t]`: a legal square for each, anything where the game is over.
Player = Callable[[Boards, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Games:
    """Finished games.

    Args:
        moves: `[N, 60]` int64, the squares played, in order, and `NONE` after the end; a pass is no move.
        boards: 61 positions, `boards[t]` before move t.
    """

    moves: np.ndarray
    boards: list[Boards]

    @property
    def legal(self) -> np.ndarray:
        """What could have been played at each move, `[N, 60]` bits; 0 after the end."""
        return np.stack([boards.moves for boards in self.boards[:-1]], axis=1)

    @property
    def margin(self) -> np.ndarray:
        return rules.margin(self.boards[-1])


def play_games(player: Player, count: int) -> Games:
    """`count` games from the start; `player` chooses for both sides."""
    boards, moves = [rules.start(count)], np.full((count, MOST_MOVES), NONE)
    for t in range(MOST_MOVES):
        now = boards[-1]
        moves[:, t] = np.where(now.moves == 0, NONE, player(now, moves[:, :t]))
        boards.append(rules.play(now, moves[:, t]))
    return Games(moves, boards)


def replay(moves: np.ndarray) -> Games:
    """The positions of games whose moves are known, `[N, 60]`.

    Raises:
        ValueError: a move is illegal.
    """
    boards = [rules.start(len(moves))]
    for t in range(MOST_MOVES):
        now, move = boards[-1], rules.bit(moves[:, t])
        illegal = np.flatnonzero(np.where(now.moves == 0, move != 0, move & now.moves == 0))
        if len(illegal):
            raise ValueError(f"Moves must be legal, but move {t + 1} of game {illegal[0]} is not; check their order.")
        boards.append(rules.play(now, moves[:, t]))
    return Games(moves, boards)


def one_of(choices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of each of `choices` (bits, `[N]`), all equally likely; `NONE` where there is none."""
    order = np.where(rules.unpack(choices), rng.random((len(choices), rules.SQUARES), np.float32), -1)
    return np.where(choices == 0, NONE, order.argmax(axis=1))


def random_player(rng: np.random.Generator) -> Player:
    return lambda boards, _: one_of(boards.moves, rng)


def random_games(count: int, seed: tuple[int, ...]) -> Games:
    """Both sides play any legal move, all equally likely: the synthetic games of Othello-GPT (Li et al. 2022)."""
    return play_games(random_player(np.random.default_rng(seed)), count)


def keys(moves: np.ndarray) -> np.ndarray:
    """One value per game, `[N]`, equal for equal games only."""
    return np.ascontiguousarray(moves.astype(np.int8)).view(f"S{MOST_MOVES}")[:, 0]
