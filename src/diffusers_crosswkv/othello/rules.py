"""The rules of Othello on bitboards, for any number of games at once.

Square `8 * row + column` is bit 1 << square of an unsigned 64-bit integer; a1 is square 0, h1 is 7, h8 is 63.
"""

from typing import NamedTuple

import numpy as np

SQUARES = 64
NONE = -1  # in the place of a square: the game is over
MOST_MOVES = 60
ONE = np.uint64(1)
NOT_A = np.uint64(0xFEFEFEFEFEFEFEFE)  # all squares but those of column a, where a step to the right cannot end
NOT_H = np.uint64(0x7F7F7F7F7F7F7F7F)
EVERYWHERE = np.uint64(0xFFFFFFFFFFFFFFFF)
STEPS = ((1, NOT_A), (9, NOT_A), (-7, NOT_A), (-1, NOT_H), (-9, NOT_H), (7, NOT_H), (8, EVERYWHERE), (-8, EVERYWHERE))
LONGEST_FLIP = 6  # discs between two of the other colour


class Boards(NamedTuple):
    """Positions `[N]` with somebody to move, or at the end of their games.

    Args:
        own, other: uint64, the discs of the side to move and of its opponent.
        black: bool, whether black is to move; black has the first move of a game.
        moves: uint64, the legal moves of the side to move; 0 only if the game is over.
    """

    own: np.ndarray
    other: np.ndarray
    black: np.ndarray
    moves: np.ndarray

    def at(self, chosen: np.ndarray) -> "Boards":
        """Some of the positions."""
        return Boards(*(field[chosen] for field in self))


def step(discs: np.ndarray, by: int, ends: np.uint64) -> np.ndarray:
    """All discs one square on; what would leave the board is gone."""
    moved = discs << np.uint64(by) if by > 0 else discs >> np.uint64(-by)
    return moved & ends


def legal_moves(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Empty squares from which a line of `other` leads to a disc of `own`, as bits."""
    empty, found = ~(own | other), np.zeros_like(own)
    for by, ends in STEPS:
        line = step(own, by, ends) & other
        for _ in range(LONGEST_FLIP - 1):
            line |= step(line, by, ends) & other
        found |= step(line, by, ends) & empty
    return found


def flips(own: np.ndarray, other: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Discs of `other` that turn when `own` plays the bit `move`; none for a move of no bits."""
    turned = np.zeros_like(own)
    for by, ends in STEPS:
        line = step(move, by, ends) & other
        for _ in range(LONGEST_FLIP - 1):
            line |= step(line, by, ends) & other
        turned |= np.where(step(line, by, ends) & own, line, np.uint64(0))
    return turned


def start(count: int) -> Boards:
    """`count` games before their first move: white on d4 and e5, black on e4 and d5."""
    black, white = (np.full(count, bits(squares), np.uint64) for squares in (("e4", "d5"), ("d4", "e5")))
    return Boards(black, white, np.ones(count, bool), legal_moves(black, white))


def play(boards: Boards, squares: np.ndarray) -> Boards:
    """Play legal `squares` `[N]`; a side that cannot move passes by itself. Games that are over stay as they are.

    The legality of a move is the caller's matter: see `Boards.moves`.
    """
    over = boards.moves == 0
    move = np.where(over, np.uint64(0), bit(squares))
    turned = flips(boards.own, boards.other, move)
    own, other = boards.other & ~turned, boards.own | turned | move  # the other side is to move
    moves = legal_moves(own, other)
    passes = moves == 0
    own, other = np.where(passes, other, own), np.where(passes, own, other)
    moves = np.where(passes, legal_moves(own, other), moves)
    after = Boards(own, other, boards.black ^ ~passes, moves)
    return Boards(*(np.where(over, before, now) for before, now in zip(boards, after, strict=True)))


def margin(boards: Boards) -> np.ndarray:
    """Discs of black minus discs of white, `[N]`; the sign of a finished game's is its result."""
    own, other = (np.bitwise_count(discs).astype(np.int64) for discs in (boards.own, boards.other))
    return np.where(boards.black, own - other, other - own)


def bit(squares: np.ndarray) -> np.ndarray:
    """`1 << square`, uint64; 0 for `NONE`."""
    squares = np.asarray(squares, np.int64)
    return np.where(squares == NONE, np.uint64(0), ONE << np.maximum(squares, 0).astype(np.uint64))


def unpack(discs: np.ndarray) -> np.ndarray:
    """Bits `[...]` as booleans `[..., 64]`, in the order of the squares."""
    bytes_ = np.ascontiguousarray(discs, "<u8")[..., None].view(np.uint8)
    return np.unpackbits(bytes_, axis=-1, bitorder="little").view(bool)


def pack(squares: np.ndarray) -> np.ndarray:
    """Booleans `[..., 64]` as bits `[...]`."""
    return np.packbits(squares, axis=-1, bitorder="little").view("<u8")[..., 0].astype(np.uint64)


def name_of(square: int) -> str:
    """Such as `d3`; the columns are letters, row 1 is at the top."""
    return f"{'abcdefgh'[square % 8]}{square // 8 + 1}"


def square_of(name: str) -> int:
    return "abcdefgh".index(name[0]) + 8 * (int(name[1]) - 1)


def bits(names) -> int:
    return sum(1 << square_of(name) for name in names)
