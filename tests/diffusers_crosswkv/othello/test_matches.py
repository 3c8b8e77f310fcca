import numpy as np
import pytest
import torch

from diffusers_crosswkv.othello import rules
from diffusers_crosswkv.othello.games import play_games, random_games, random_player
from diffusers_crosswkv.othello.matches import ModelPlayer, Score, play_match
from diffusers_crosswkv.othello.players import (
    cautious_moves,
    cautious_player,
    greedy_moves,
    greedy_player,
    lesson_player,
)


def positions():
    return random_games(20, (5,)).boards[30]


def squares(discs):
    return np.flatnonzero(rules.unpack(discs)).tolist()


def test_greedy_turns_most():
    boards = positions()
    for n, chosen in enumerate(greedy_moves(boards)):
        one = boards.at(np.array([n]))
        turned = {s: len(squares(rules.flips(one.own, one.other, rules.bit([s]))[0])) for s in squares(one.moves[0])}
        assert squares(chosen) == [s for s, count in turned.items() if count == max(turned.values())]


def test_cautious_takes_corners_and_keeps_away_from_them():
    boards = random_games(200, (6,)).boards[35]
    chosen, corners, beside = cautious_moves(boards), {0, 7, 56, 63}, {1, 8, 9, 6, 14, 15, 48, 49, 57, 54, 55, 62}
    offered = [bool(corners & set(squares(moves))) for moves in boards.moves]
    assert 20 < sum(offered) < 180
    for moves, best, corner in zip(boards.moves, chosen, offered, strict=True):
        assert set(squares(best)) <= set(squares(moves))
        if corner:
            assert set(squares(best)) <= corners
        elif set(squares(moves)) - beside:
            assert not set(squares(best)) & beside


def test_cautious_counts_answers():
    """Among moves that are neither corners nor beside them, it leaves the opponent the fewest."""
    boards = random_games(20, (7,)).boards[10]
    for n, best in enumerate(cautious_moves(boards)):
        one = boards.at(np.array([n]))
        answers = {}
        for s in squares(one.moves[0]):
            turned = rules.flips(one.own, one.other, rules.bit([s]))
            own, other = one.own | turned | rules.bit([s]), one.other & ~turned
            answers[s] = len(squares(rules.legal_moves(other, own)[0]))
        plain = {s: count for s, count in answers.items() if s in range(64) and s // 8 in range(2, 6)}
        if set(squares(best)) <= plain.keys():
            assert all(answers[s] == min(plain.values()) for s in squares(best))


def test_better_players_win():
    rng = np.random.default_rng
    even = play_match(random_player(rng(0)), random_player(rng(1)), 400)
    assert even.interval[0] < 0.48 < even.interval[1]
    greedy = play_match(greedy_player(rng(0)), random_player(rng(1)), 400)
    cautious = play_match(cautious_player(rng(0)), random_player(rng(1)), 400)
    assert 0.5 < greedy.interval[0] < greedy.interval[1] < cautious.interval[0]


def test_sides_of_a_match():
    """Whoever plays the first legal square beats whoever plays the last, or not: each is black as often."""

    def first(boards, moves):
        return rules.unpack(boards.moves).argmax(-1)

    def last(boards, moves):
        return 63 - rules.unpack(boards.moves)[:, ::-1].argmax(-1)

    score, reverse = play_match(first, last, 10), play_match(last, first, 10)
    assert (score.wins, score.draws, score.losses) == (reverse.losses, reverse.draws, reverse.wins)
    assert score.games == 10
    as_black = play_games(lambda b, m: np.where(b.black, first(b, m), last(b, m)), 1).margin[0]
    as_white = play_games(lambda b, m: np.where(b.black, last(b, m), first(b, m)), 1).margin[0]
    assert score.wins == 5 * (int(as_black > 0) + int(as_white < 0))


def test_wilson():
    assert Score(8, 1, 1).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Score(10, 0, 0).interval == pytest.approx((0.7225, 1.0), abs=1e-4)


class Fixed(torch.nn.Module):
    """Likes square 0 best, then 1, ...; keeps what it was asked."""

    device = torch.device("cpu")

    def forward(self, tokens):
        self.tokens = tokens
        return -torch.arange(64.0).expand(*tokens.shape, 64)


def test_a_model_plays_its_best_legal_move():
    games = random_games(20, (5,))
    model = Fixed()
    player = ModelPlayer(model)
    assert (player(games.boards[30], games.moves[:, :30]) == rules.unpack(games.boards[30].moves).argmax(-1)).all()
    assert model.tokens.shape == (20, 31)
    assert (model.tokens[:, 1:].numpy() == games.moves[:, :30]).all()
    assert player.choices == 20
    assert player.illegal == sum(0 not in squares(moves) for moves in games.boards[30].moves)


def test_lessons_have_both_kinds_of_players():
    rng = np.random.default_rng(0)
    games = play_games(lesson_player(300, rng), 300)
    right = np.stack(
        [(rules.bit(games.moves[:, t]) & cautious_moves(games.boards[t])) != 0 for t in range(60)], axis=1
    )
    made = games.legal != 0
    black = np.stack([boards.black for boards in games.boards[:-1]], axis=1)
    by_side = [np.where(made & side, right, np.nan) for side in (black, ~black)]
    shares = np.sort([np.nanmean(side, axis=1) for side in by_side], axis=0)
    assert np.median(shares[0]) < 0.5 < 0.85 < np.median(shares[1])
