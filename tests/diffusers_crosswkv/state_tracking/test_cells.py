import dataclasses

import pytest
import torch

from diffusers_crosswkv.sequences import SequenceConfig, SequenceModel
from diffusers_crosswkv.state_tracking import cells
from diffusers_crosswkv.state_tracking.automata import TASKS
from diffusers_crosswkv.state_tracking.cells import ARMS, QUICK, Cell, Setup, run_cell

SMALL = dataclasses.replace(QUICK, width=16, test_words=64)


class Knows(torch.nn.Module):
    """Says what is right, but for the tokens from `until` on."""

    def __init__(self, automaton, until):
        super().__init__()
        self.automaton, self.until, self.blocks = automaton, until, []

    def forward(self, tokens):
        labels = self.automaton.label(tokens)
        labels[:, self.until :] = (labels[:, self.until :] + 1) % self.automaton.classes
        return torch.nn.functional.one_hot(labels, self.automaton.classes).double()

    def trace(self, tokens):
        return SequenceModel(SequenceConfig(self.automaton.vocabulary, 2, mixer="softmax")).trace(tokens)


def test_accuracy_counts_all_tokens_up_to_a_length_and_the_last_alone():
    measured = cells.measure(Knows(TASKS["s5_swaps"], until=24), TASKS["s5_swaps"], SMALL)
    assert measured["accuracy"] == {"4": 1, "8": 1, "16": 1, "32": 0.75}
    assert measured["last"] == {"4": 1, "8": 1, "16": 1, "32": 0}


@pytest.mark.parametrize("arm", ARMS)
def test_a_cell_follows_from_its_seed(arm):
    cell = Cell("a5", arm, 2, seed=4)
    first, again, other = (run_cell(c, SMALL, progress=False) for c in (cell, cell, dataclasses.replace(cell, seed=5)))
    timeless = {"seconds", "date"}
    assert {k: v for k, v in first.items() if k not in timeless} == {
        k: v for k, v in again.items() if k not in timeless
    }
    assert first["loss"] != other["loss"]
    if arm == "softmax":
        assert "mean_rate" not in first
        return
    assert [len(rates) for rates in first["mean_rate"]] == [2, 2]  # heads of each layer
    limit = {"diagonal": 0, "wkv7, rate to 1": 1}.get(arm, 2)
    assert all(0 <= rate <= limit for rates in first["mean_rate"] for rate in rates)
    assert all(0.5 < kept < 1 for decays in first["mean_decay"] for kept in decays)


def test_one_layer_with_a_rate_to_two_learns_parity():
    setup = Setup(width=16, steps=120, learning_rate=1e-2, test_words=64)
    row = run_cell(Cell("parity", "wkv7, rate to 2", 1, seed=0), setup, progress=False)
    assert row["accuracy"]["16"] > 0.99


def test_a_loss_that_is_not_finite_stops(monkeypatch):
    setup = dataclasses.replace(SMALL, learning_rate=float("inf"))
    with pytest.raises(FloatingPointError, match="parity, diagonal, 1 layer, seed 0 is nan at step"):
        run_cell(Cell("parity", "diagonal", 1, seed=0), setup, progress=False)
