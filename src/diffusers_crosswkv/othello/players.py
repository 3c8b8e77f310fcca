"""Players that know the rules: what a model is compared with, and what it may be taught by."""

import numpy as np

from . import rules
from .games import Player, one_of
from .rules import Boards

CORNERS = rules.bits(("a1", "h1", "a8", "h8"))
BESIDE_CORNERS = rules.bits(("b1", "a2", "b2", "g1", "h2", "g2", "a7", "b7", "b8", "h7", "g7", "g8"))
CORNER, BESIDE_CORNER = 100, -25  # in units of one legal move of the opponent
ONE_IN = 10  # moves of the side that is taught from are random ones, so that more positions are seen


def greedy_moves(boards: Boards) -> np.ndarray:
    """The legal moves that turn most discs, as bits `[N]`."""
    return best(boards, lambda before, move: np.bitwise_count(rules.flips(before.own, before.other, move)))


def cautious_moves(boards: Boards) -> np.ndarray:
    """The best legal moves one move ahead, as bits `[N]`: corners, none beside them, few answers of the opponent."""

    def value(before: Boards, move: np.ndarray) -> np.ndarray:
        turned = rules.flips(before.own, before.other, move)
        answers = rules.legal_moves(before.other & ~turned, before.own | turned | move)
        places = CORNER * np.bitwise_count(move & np.uint64(CORNERS)).astype(int)
        places += BESIDE_CORNER * np.bitwise_count(move & np.uint64(BESIDE_CORNERS)).astype(int)
        return places - np.bitwise_count(answers)

    return best(boards, value)


def best(boards: Boards, value) -> np.ndarray:
    """Bits of the moves of the highest value; `value(boards, move bits)` is called for one move of each board."""
    game, square = np.nonzero(rules.unpack(boards.moves))
    values = np.full((len(boards.own), rules.SQUARES), np.iinfo(np.int64).min)
    values[game, square] = value(boards.at(game), rules.bit(square))
    return rules.pack(values == values.max(axis=1, keepdims=True)) & boards.moves


def greedy_player(rng: np.random.Generator) -> Player:
    return lambda boards, _: one_of(greedy_moves(boards), rng)


def cautious_player(rng: np.random.Generator) -> Player:
    return lambda boards, _: one_of(cautious_moves(boards), rng)


def lesson_player(count: int, rng: np.random.Generator) -> Player:
    """One side of each of `count` games is the cautious player, with some random moves; the other plays at random."""
    taught_is_black = rng.random(count) < 0.5

    def choose(boards: Boards, _: np.ndarray) -> np.ndarray:
        taught = (boards.black == taught_is_black) & (rng.random(count) >= 1 / ONE_IN)
        return one_of(np.where(taught, cautious_moves(boards), boards.moves), rng)

    return choose
