import dataclasses
import os
import signal

import pytest
import torch

from diffusers_crosswkv.othello import training
from diffusers_crosswkv.othello.lessons import Lessons
from diffusers_crosswkv.othello.suite import MIXERS, PRESETS, run_suite
from diffusers_crosswkv.othello.training import Plan, Training, make_model, rate_at
from diffusers_crosswkv.training.stopping import TrainingInterrupted

PLAN = Plan("wkv7", "legal", width=16, head_dim=8, layers=2, steps=4, batch_size=4, learning_rate=4e-3)


def weights(of):
    return {name: x.clone() for name, x in of.model.state_dict().items()}


@pytest.mark.parametrize("mixer", MIXERS)
def test_stopped_and_gone_on_is_the_same(mixer, tmp_path, monkeypatch, few_games):
    plan = dataclasses.replace(PLAN, mixer=mixer)
    whole = Training(plan, tmp_path / "whole")
    whole.run(progress=False)

    stopped, take_step = Training(plan, tmp_path / "parts"), Training.take_step

    def interrupted_step(self, lessons):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step
        return take_step(self, lessons)

    monkeypatch.setattr(Training, "take_step", interrupted_step)
    with pytest.raises(TrainingInterrupted, match="step 2 of 4, saved"):
        stopped.run(progress=False)
    monkeypatch.setattr(Training, "take_step", take_step)
    gone_on = Training(plan, tmp_path / "parts")
    assert gone_on.step == 2
    gone_on.run(progress=False)
    torch.testing.assert_close(weights(gone_on), weights(whole), rtol=0, atol=0)
    finished = Training(plan, tmp_path / "parts")
    assert finished.step == 4
    torch.testing.assert_close(weights(finished), weights(whole), rtol=0, atol=0)


def test_another_plan_is_refused(tmp_path):
    Training(PLAN, tmp_path).save()
    with pytest.raises(ValueError, match=r"must hold a training of Plan\(.*steps=5.*use another output folder"):
        Training(dataclasses.replace(PLAN, steps=5), tmp_path)


@pytest.mark.parametrize("mixer", MIXERS)
def test_models_are_causal_and_know_the_place(mixer):
    model = make_model(dataclasses.replace(PLAN, mixer=mixer)).eval()
    tokens = torch.randint(64, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 64
    with torch.no_grad():
        logits, other = model(tokens), model(changed)
    torch.testing.assert_close(logits[:, :7], other[:, :7])
    assert not torch.isclose(logits[:, 7:], other[:, 7:]).all()
    assert logits.shape == (2, 12, 64)
    embedded = model.embed(torch.zeros(1, 60, dtype=torch.long))
    assert len(embedded[0].unique(dim=0)) == 60


def test_a_model_learns_which_moves_are_legal(tmp_path, few_games):
    plan = dataclasses.replace(PLAN, steps=20, batch_size=16, learning_rate=2e-2)
    trained = Training(plan, tmp_path)
    batch = Lessons("legal", 16, seed=99).batch(0)
    before = training.loss_of(trained.model, batch).item()
    trained.run(progress=False)
    assert training.loss_of(trained.model, batch).item() < before - 0.2


def test_rate():
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[0] == 0.2
    assert max(rates) == rates[4] == pytest.approx(0.96)
    assert rates[99] == 0.01


def test_play_goes_on_from_legal(tmp_path, few_games):
    preset = PRESETS["smoke"]
    with pytest.raises(ValueError, match="none; add that lesson"):
        run_suite(preset, tmp_path, ["wkv7"], ["play"], progress=False)
    run_suite(preset, tmp_path, ["wkv7"], ["legal"], progress=False)
    legal = Training(preset.plan("wkv7", "legal"), tmp_path / "wkv7-legal")
    run_suite(preset, tmp_path, ["wkv7"], ["play"], progress=False)
    play = Training(preset.plan("wkv7", "play"), tmp_path / "wkv7-play")
    moved = max((x - y).abs().max() for x, y in zip(weights(legal).values(), weights(play).values(), strict=True))
    assert 0 < moved < 0.1  # two steps
