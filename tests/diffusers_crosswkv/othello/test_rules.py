import numpy as np
import pytest

from diffusers_crosswkv.othello import rules
from diffusers_crosswkv.othello.games import one_of, random_games, replay
from diffusers_crosswkv.othello.rules import NONE, Boards

PERFT = [4, 12, 56, 244, 1396, 8200, 55092, 390216]  # positions after 1, 2, ... moves, counted with repetition


def test_perft():
    boards = rules.start(1)
    for count in PERFT:
        game, square = np.nonzero(rules.unpack(boards.moves))
        assert len(game) == count
        boards = rules.play(boards.at(game), square)


def test_names():
    assert [rules.name_of(i) for i in (0, 7, 56, 63, 19)] == ["a1", "h1", "a8", "h8", "d3"]
    assert all(rules.square_of(rules.name_of(i)) == i for i in range(64))
    start = rules.start(1)
    assert names(start.moves[0]) == ["d3", "c4", "f5", "e6"]  # black begins
    assert start.black.all()


def names(discs):
    return [rules.name_of(i) for i in np.flatnonzero(rules.unpack(np.uint64(discs)))]


def position(picture, black=True):
    """From eight lines of `x` (to move), `o` and `.`."""
    squares = "".join(picture.split())
    own, other = (rules.pack(np.array([c == which for c in squares]))[None] for which in "xo")
    return Boards(own, other, np.array([black]), rules.legal_moves(own, other))


def test_flips_in_all_directions():
    before = position("""x..x..x.
                         .o.o.o..
                         ..ooo...
                         xoo.ooox
                         ..ooo...
                         .o.o.o..
                         x..o..x.
                         ...x....""")
    after = rules.play(before, np.array([rules.square_of("d4")]))
    assert after.moves[0] == 0  # white has no disc left
    assert rules.margin(after)[0] == 8 + 1 + 18


@pytest.mark.parametrize("by", [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)])
def test_flips_in_one_direction(by):
    """A line of two is turned if a disc of its own side ends it, and not if the edge or an empty square does."""
    row, column = (3, 3)
    line = [(row + i * by[0], column + i * by[1]) for i in (1, 2)]
    end = (row + 3 * by[0], column + 3 * by[1])
    own, other = np.array([square_bit(end)]), np.array([sum(square_bit(x) for x in line)])
    move = np.array([square_bit((row, column))])
    assert rules.flips(own, other, move) == other
    assert rules.legal_moves(own, other) & move
    assert rules.flips(np.zeros_like(own), other, move) == 0
    assert rules.legal_moves(np.zeros_like(own), other) == 0


def square_bit(place):
    return np.uint64(1 << (8 * place[0] + place[1]))


def test_lines_do_not_go_round_the_edge():
    board = position("""......oo
                        x.......
                        ........
                        ........
                        ........
                        ........
                        .......x
                        oo......""")
    assert board.moves[0] == 0


def test_pass():
    """White has no answer, so black moves twice."""
    before = position("""xo.o....
                         ........
                         ........
                         ........
                         ........
                         ........
                         ........
                         ........""")
    after = rules.play(before, np.array([rules.square_of("c1")]))
    assert after.black.all()
    assert names(after.moves[0]) == ["e1"]
    over = rules.play(after, np.array([rules.square_of("e1")]))
    assert over.moves[0] == 0
    assert rules.margin(over)[0] == 5


def test_wipe_out():
    """The shortest game there is: nine moves, and white has no disc left."""
    moves = ["e6", "f4", "e3", "f6", "g5", "d6", "e7", "f5", "c5"]
    game = np.full((1, 60), NONE)
    game[0, : len(moves)] = [rules.square_of(x) for x in moves]
    played = replay(game)
    assert [len(names(boards.moves[0])) > 0 for boards in played.boards[:10]] == [True] * 9 + [False]
    assert played.margin[0] == 13
    assert (played.legal[0, 9:] == 0).all()


def test_a_finished_game_stays():
    over = position("x" * 8 + "." * 56)
    for square in (NONE, 20):
        assert rules.play(over, np.array([square])) == over


def test_bits_and_squares():
    discs = np.random.default_rng(0).integers(0, 2**64, (5, 3), np.uint64)
    assert (rules.pack(rules.unpack(discs)) == discs).all()
    assert (rules.bit(np.array([NONE, 0, 63])) == [0, 1, 2**63]).all()


def test_full_games_as_a_plain_implementation_plays_them():
    many = random_games(3000, (7,))
    early = np.flatnonzero(many.moves[:, -1] == NONE)
    assert len(early) > 5
    games = replay(many.moves[[*early[:12], *range(12)]])
    for n, moves in enumerate(games.moves):
        plain = Plain()
        for t, move in enumerate(moves):
            boards = games.boards[t].at([n])
            assert names(boards.moves[0]) == [rules.name_of(i) for i in plain.moves(plain.side)]
            assert boards.black[0] == (plain.side == 1) or not plain.moves(plain.side)
            sides = rules.unpack(boards.own)[0].astype(int) - rules.unpack(boards.other)[0]
            assert (sides * (1 if boards.black[0] else -1)).tolist() == plain.board
            if move == NONE:
                assert not plain.moves(1) and not plain.moves(-1)
            else:
                plain.play(move)
        assert games.margin[n] == sum(plain.board)


class Plain:
    """Othello on a list of 64 numbers, 1 for black and -1 for white, walking from square to square."""

    def __init__(self):
        self.board, self.side = [0] * 64, 1
        for name, disc in (("d4", -1), ("e5", -1), ("e4", 1), ("d5", 1)):
            self.board[rules.square_of(name)] = disc

    def turned(self, square, side):
        if self.board[square]:
            return []
        found = []
        for dx, dy in [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]:
            line, x, y = [], square % 8 + dx, square // 8 + dy
            while 0 <= x < 8 and 0 <= y < 8 and self.board[8 * y + x] == -side:
                line.append(8 * y + x)
                x, y = x + dx, y + dy
            if 0 <= x < 8 and 0 <= y < 8 and self.board[8 * y + x] == side:
                found += line
        return found

    def moves(self, side):
        return [square for square in range(64) if self.turned(square, side)]

    def play(self, square):
        for other in [square, *self.turned(square, self.side)]:
            self.board[other] = self.side
        if self.moves(-self.side):
            self.side = -self.side


def test_random_moves_are_uniform():
    choices = np.full(40_000, rules.bits(("a1", "d3", "h8", "b7")), np.uint64)
    counts = np.bincount(one_of(choices, np.random.default_rng(0)), minlength=64)
    assert counts[counts > 0].tolist() == pytest.approx([10_000] * 4, abs=350)  # four standard deviations
    assert one_of(np.zeros(2, np.uint64), np.random.default_rng(0)).tolist() == [NONE, NONE]


def test_an_illegal_move_is_named():
    moves = random_games(3, (0,)).moves
    moves[1, 4] = rules.square_of("a1")
    with pytest.raises(ValueError, match=r"move 5 of game 1"):
        replay(moves)
