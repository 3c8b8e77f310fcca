import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from diffusers_crosswkv.alignment.arms import MAIN_ARMS
from diffusers_crosswkv.alignment.runs import row_path, train_arm
from diffusers_crosswkv.alignment.suite import SMALL, SMOKE, text_encoder_of
from diffusers_crosswkv.alignment.text_encoder import (
    NAMES,
    SceneReader,
    SigmoidReading,
    facts_of,
    shared_text_encoder,
    untrained_text_encoder,
)
from diffusers_crosswkv.data.scenes import Scene, SceneObject


def test_facts():
    scene = Scene((SceneObject("green", "cross", "small", (0, 1)), SceneObject("red", "ring", "large", (1, 0))), 2)
    assert facts_of(scene).tolist() == [[0, 0, 0], [2, 4, 1], [1, 1, 2], [0, 0, 0]]


def test_masked_tokens_are_not_read():
    torch.manual_seed(0)
    text, mask = torch.randn(2, 7, 32), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    reader = SceneReader(32, cells=4)
    logits = reader(text, mask)
    assert [x.shape for x in logits] == [(2, 4, 1 + len(names)) for names in NAMES]
    short = reader(text[1:, :4], mask[1:, :4])
    for whole, part in zip(logits, short, strict=True):
        torch.testing.assert_close(whole[1:], part)


def test_tokens_do_not_compete():
    torch.manual_seed(0)
    reading, x, text = SigmoidReading(32), torch.randn(1, 3, 32), torch.randn(1, 4, 32)
    ones = torch.ones(1, 4).long()
    nothing = reading(x, text, 0 * ones)
    parts = [reading(x, text[:, i : i + 2], ones[:, :2]) - nothing for i in (0, 2)]
    torch.testing.assert_close(reading(x, text, ones) - nothing, sum(parts), rtol=1e-5, atol=1e-6)


def test_it_is_trained_once_and_shared(tmp_path):
    first = shared_text_encoder(SMOKE, tmp_path, progress=False)
    row = json.loads(row_path(tmp_path, "training").read_text(encoding="utf-8"))
    assert (row["kind"], row["steps"], row["parameters"]) == ("text encoder", SMOKE.text_steps, first.num_parameters())
    time = row_path(tmp_path, "training").stat().st_mtime_ns
    second = shared_text_encoder(SMOKE, tmp_path, progress=False)
    assert row_path(tmp_path, "training").stat().st_mtime_ns == time
    assert alike(first, second)


def test_an_interrupted_training_leaves_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.CLIPTextModel.save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shared_text_encoder(SMOKE, tmp_path, progress=False)
    assert not (tmp_path / "weights").exists()
    monkeypatch.undo()
    shared_text_encoder(SMOKE, tmp_path, progress=False)


def interrupt(self, folder):
    folder.mkdir()
    raise KeyboardInterrupt


def test_it_learns_what_captions_say(tmp_path):
    preset = dataclasses.replace(SMALL, text_steps=150, batch_size=32)
    shared_text_encoder(preset, tmp_path, progress=False)
    row = json.loads(row_path(tmp_path, "training").read_text(encoding="utf-8"))
    # frequencies alone give 4.0: ln 2 + ln(6) / 2 for colours, ln 2 + ln(4) / 2 for shapes, 3 ln(2) / 2 for sizes
    assert row["loss"] < 3.4


def test_two_processes_may_train_it_at_once(tmp_path, monkeypatch):
    first = shared_text_encoder(SMOKE, tmp_path, progress=False)
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "weights" or len(renames) > 0)
    renames = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (renames.append(target), rename(path, target))[1])
    second = shared_text_encoder(SMOKE, tmp_path, progress=False)
    assert renames == [tmp_path / "weights"]
    assert alike(first, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "weights"]


def test_it_is_trained(tmp_path):
    assert not alike(shared_text_encoder(SMOKE, tmp_path, progress=False), untrained_text_encoder(SMOKE))


def test_arms_take_it_and_leave_it_as_it_is(tmp_path):
    text_encoder = text_encoder_of(SMOKE, tmp_path, progress=False)
    given = copy.deepcopy(text_encoder)
    trained = train_arm("state", MAIN_ARMS["state"], SMOKE, 0, text_encoder, tmp_path / "arm", progress=False)
    assert trained.models.text_encoder is text_encoder
    assert alike(text_encoder, given)
    with pytest.raises(ValueError, match="holds a training with another setup"):
        text_encoder_of(SMALL, tmp_path, progress=False)


def alike(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
