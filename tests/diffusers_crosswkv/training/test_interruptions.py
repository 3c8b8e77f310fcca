"""Runs that are ended from outside, in processes of their own, and taken up here."""

import json
import random
import signal
import time

import pytest
import torch
from running import ForkedScript
from training_process import SCRIPT, fifty_digits, tiny_config, tiny_models, weights_of

from diffusers_crosswkv.training import train
from diffusers_crosswkv.training.checkpoints import checkpoint_folders, load_latest_checkpoint

STEPS = 16


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    models = tiny_models()
    settings = {"max_train_steps": STEPS, "checkpointing_steps": 1}
    train(tiny_config(tmp_path_factory.mktemp("straight"), **settings), models, fifty_digits(), progress=False)
    return weights_of(models)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_ended_by_a_signal_goes_on_to_the_same_weights(straight, tmp_path, number):
    settings = {"max_train_steps": STEPS, "checkpointing_steps": 1}  # so that a kill may well fall into a checkpoint
    process = ForkedScript(SCRIPT, [json.dumps(settings | {"output_dir": str(tmp_path)})])
    while len(checkpoint_folders(tmp_path / "checkpoints")) < 2:
        assert process.poll() is None, process.wait()
        time.sleep(0.01)
    time.sleep(random.Random().uniform(0, 0.3))  # anywhere in a step: the test holds wherever it falls
    process.send_signal(number)
    status, output = process.wait(timeout=60)
    assert status == (0 if number == signal.SIGTERM else -number), output
    done = load_latest_checkpoint(tmp_path / "checkpoints").step
    assert 2 <= done < STEPS, output
    if number == signal.SIGTERM:
        assert f"Stopped after {done} of {STEPS} steps; all is saved." in output
    resumed = tiny_models(seed=5)  # other weights: all must come from the checkpoint
    train(tiny_config(tmp_path, **settings), resumed, fifty_digits(), progress=False)
    resumed = weights_of(resumed)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert not list((tmp_path / "checkpoints").glob(".*"))  # what the kill left half written is gone
