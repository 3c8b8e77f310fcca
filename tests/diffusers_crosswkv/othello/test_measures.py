import numpy as np
import pytest
import torch

from diffusers_crosswkv.othello import probes, rules
from diffusers_crosswkv.othello.games import Games, keys, random_games
from diffusers_crosswkv.othello.legality import chance_levels, held_out_games, measure_legality
from diffusers_crosswkv.othello.lessons import HELD_OUT, START
from diffusers_crosswkv.othello.probes import fit_probe, majority, positions, read_boards
from diffusers_crosswkv.othello.rules import NONE
from diffusers_crosswkv.sequences import Trace


class Knowing(torch.nn.Module):
    """Knows the board; the share of its moves that are legal is given."""

    device = torch.device("cpu")

    def __init__(self, games, illegal_from=60):
        super().__init__()
        self.games, self.illegal_from = games, illegal_from

    def forward(self, tokens):
        legal = torch.from_numpy(rules.unpack(self.games.legal)).float()
        legal[:, self.illegal_from :] = 1 - legal[:, self.illegal_from :]
        return 50 * legal

    def trace(self, tokens):
        boards = [rules.start(len(tokens))]
        for move in np.where(tokens == START, NONE, tokens).T[1:]:
            boards.append(rules.play(boards[-1], move))
        board = np.stack([rules.unpack(b.own) - 1.0 * rules.unpack(b.other) for b in boards], axis=1)
        known = torch.from_numpy(board).float()
        return Trace([torch.randn_like(known)], [known.unflatten(-1, (1, 8, 8))])


def test_legality_of_a_model_that_knows():
    games = random_games(10, (1,))
    found = measure_legality(Knowing(games), games)
    assert found.mean.mean == 1
    assert np.nanmean(found.mass) == pytest.approx(1)
    half = measure_legality(Knowing(games, illegal_from=30), games)
    assert half.by_move == [1] * 30 + [0] * 30
    assert half.mean.mean == pytest.approx(0.5, abs=0.01)
    assert np.nanmean(half.mass[:, 30:]) == pytest.approx(0)


def test_moves_behind_the_end_do_not_count():
    many = random_games(3000, (2,))
    early = np.flatnonzero(many.moves[:, -1] == NONE)[:5]
    games = Games(many.moves[early], [boards.at(early) for boards in many.boards])
    found = measure_legality(Knowing(games), games)
    assert (np.isnan(found.hits) == (games.moves == NONE)).all()
    assert np.isnan(found.hits).any()


def test_chance(few_games):
    games = random_games(300, (3,))
    levels = chance_levels(games)
    assert levels["any square"].by_move[0] == 4 / 64
    assert levels["any empty square"].by_move[0] == pytest.approx(4 / 60)
    assert levels["best guess for the move number"].by_move[0] == 1
    assert 0.1 < levels["any square"].mean.mean < 0.2 < levels["best guess for the move number"].mean.mean < 0.4


def test_held_out_games_are_not_those_of_the_training():
    games = random_games(6, (HELD_OUT,))
    kept, left_out = held_out_games(6, {keys(games.moves).tolist()[2], b"other"})
    assert left_out == 1
    assert (kept.moves == games.moves[[0, 1, 3, 4, 5]]).all()
    assert (kept.legal == games.legal[[0, 1, 3, 4, 5]]).all()


def test_a_probe_reads_a_board_that_is_there_and_no_other(monkeypatch):
    monkeypatch.setattr(probes, "PROBE_EPOCHS", 60)  # of few positions
    monkeypatch.setattr(probes, "PROBE_RATE", 0.1)
    train, test = positions(150, 0), positions(30, 1)
    found = read_boards(Knowing(train.games), train, test)
    guess = majority(train, test)
    assert found["state 1"].squares.mean > 0.99 < found["state 1"].discs.mean + 0.01
    assert found["layer 0"].discs.mean < 0.6
    assert 0.45 < guess.discs.mean < 0.7
    assert guess.squares.mean > found["layer 0"].squares.mean


def test_a_probe_takes_the_decay_that_reads_other_games_best(monkeypatch):
    train, test = positions(40, 0), positions(20, 1)
    generator = torch.Generator().manual_seed(0)

    def noisy(where):
        labels = where.labels.flatten(0, 1)
        discs = torch.cat((labels == 1, labels == 2), dim=1).float()
        return (discs + torch.randn(discs.shape, generator=generator)).half()

    known, asked, labels = noisy(train), noisy(test), test.labels.flatten(0, 1)

    def right(decays):
        monkeypatch.setattr(probes, "PROBE_DECAYS", decays)
        return (fit_probe(known, train.labels, asked, 0) == labels)[labels > 0].double().mean()

    assert right((100.0,)) + 0.01 < right((0.01,)) == right((0.01, 100.0)) == right((100.0, 0.01))


def test_positions_are_those_of_the_games():
    where = positions(5, 0)
    for n in range(5):
        for when, label in zip(where.when[n], where.labels[n], strict=True):
            boards = where.games.boards[when]
            assert ((label == 1).numpy() == rules.unpack(boards.own[n])).all()
            assert ((label == 2).numpy() == rules.unpack(boards.other[n])).all()
            assert boards.moves[n] != 0
