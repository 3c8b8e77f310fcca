import numpy as np
import pytest
import torch

from diffusers_crosswkv.othello import lessons, rules
from diffusers_crosswkv.othello.games import keys, random_games, replay
from diffusers_crosswkv.othello.lessons import LESSONS, START, Lessons, answers, batch_of, tokens_of, training_games
from diffusers_crosswkv.othello.players import cautious_moves
from diffusers_crosswkv.othello.rules import NONE


def test_games_follow_from_the_seed():
    games, same, others = (random_games(50, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert (games.moves == same.moves).all()
    assert not set(keys(games.moves)) & set(keys(others.moves))
    assert (replay(games.moves).margin == games.margin).all()


def test_keys_tell_games_apart():
    moves = np.full((3, 60), NONE)
    moves[0, 59] = moves[2, 0] = 0
    assert len(set(keys(moves).tolist())) == 3


def test_tokens_are_the_moves_before():
    moves = np.array([[19, 18, NONE], [26, 20, 9]])
    assert tokens_of(moves).tolist() == [[START, 19, 18], [START, 26, 20]]
    assert tokens_of(moves, following=True).tolist() == [[START, 19, 18, START], [START, 26, 20, 9]]


def test_targets():
    many = random_games(2000, (3,))
    chosen = [np.flatnonzero(many.moves[:, -1] == NONE)[0], 0, 1]  # one of them ended early
    games = replay(many.moves[chosen])
    for lesson in LESSONS:
        batch = batch_of(games.moves, answers(lesson, games))
        total = batch.targets.sum(-1)
        torch.testing.assert_close(total, torch.from_numpy(games.moves != NONE).float())
        assert not (batch.targets.bool() & ~torch.from_numpy(rules.unpack(games.legal))).any()
    assert (answers("legal", games) == games.legal).all()
    played = batch_of(games.moves, answers("next", games)).targets
    assert (played.argmax(-1).numpy()[1:] == games.moves[1:]).all()
    assert (answers("play", games)[:, 20] == cautious_moves(games.boards[20])).all()


def test_legal_is_the_expectation_of_next(monkeypatch):
    """After the same opening, the moves that are played next are spread as `legal` says."""
    monkeypatch.setattr(lessons, "GAMES_AT_ONCE", 4000)
    games = training_games("legal", 0, 0)
    legal, played = (batch_of(games.moves[:, :1], answers(x, games)[:, :1]).targets for x in ("legal", "next"))
    assert (legal == legal[0]).all()
    torch.testing.assert_close(played.mean(0), legal[0], atol=0.03, rtol=0)  # four standard deviations


@pytest.mark.parametrize("lesson", LESSONS)
def test_batches_by_number(lesson, monkeypatch):
    monkeypatch.setattr(lessons, "GAMES_AT_ONCE", 8)
    one, other = Lessons(lesson, 4, seed=1), Lessons(lesson, 4, seed=1)
    batches = [one.batch(step) for step in range(5)]
    again = [other.batch(step) for step in (4, 1, 0)]
    assert all(torch.equal(batches[n].tokens, b.tokens) for n, b in zip((4, 1, 0), again, strict=True))
    assert all(torch.equal(batches[n].targets, b.targets) for n, b in zip((4, 1, 0), again, strict=True))
    assert len({b.tokens.numpy().tobytes() for b in batches}) == 5
    assert not torch.equal(Lessons(lesson, 4, seed=2).batch(0).tokens, batches[0].tokens)


def test_seen_are_the_games_of_the_batches(monkeypatch):
    monkeypatch.setattr(lessons, "GAMES_AT_ONCE", 8)
    all_games = np.concatenate([training_games("legal", 0, n).moves for n in range(2)])
    assert Lessons("legal", 4, 0).seen(3) == set(keys(all_games)[:12].tolist())
