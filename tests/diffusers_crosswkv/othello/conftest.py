"""What keeps the tests of this room quick."""

import pytest

from diffusers_crosswkv.othello import legality, lessons


@pytest.fixture
def few_games(monkeypatch):
    monkeypatch.setattr(lessons, "GAMES_AT_ONCE", 16)
    monkeypatch.setattr(legality, "GAMES_OF_CHANCE", 64)
