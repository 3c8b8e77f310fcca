import copy
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from diffusers_crosswkv.data.digits import Digits, load_digits
from diffusers_crosswkv.training import Models, TrainingConfig, TrainingInterrupted, train
from diffusers_crosswkv.training import loop as loop_module
from diffusers_crosswkv.training.text import make_text_encoder


@pytest.fixture
def make_models(make_unet, tokenizer, noise_schedule):
    def make(seed=0, **unet_config):
        torch.manual_seed(seed)
        return Models(
            make_unet(seed, randomize=False, **unet_config),
            make_text_encoder(tokenizer, 24, num_layers=1),
            tokenizer,
            noise_schedule,
            text_prefix="<|endoftext|>",
        )

    return make


@pytest.fixture
def digits():
    everything = load_digits()
    return Digits(everything.images[:50], everything.labels[:50])


def config(folder, **values):
    defaults = {"max_train_steps": 6, "batch_size": 8, "checkpointing_steps": 2, "lr_warmup_steps": 1}
    return TrainingConfig(folder, **(defaults | values))


def weights(models):
    return [p.detach().clone() for p in models.parameters()]


def test_training_on_one_batch_lowers_its_loss(make_models, digits, tmp_path):
    models = make_models()
    run = loop_module.Run(config(tmp_path, learning_rate=5e-3), models, digits, loop_module.Accelerator())
    batch = run.batch(0)
    losses = []
    for _ in range(12):
        losses.append(run.loss(batch).item())
        run.batch = lambda step: batch
        run.step(0)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("dropout", "optimizer"), [(0.0, "adamw"), (0.2, "adamw"), (0.0, "muon")])
def test_interrupted_and_straight_runs_are_bitwise_equal(
    make_models, digits, tmp_path, monkeypatch, dropout, optimizer
):
    make_models = partial(make_models, dropout=dropout)
    straight = make_models()
    train(config(tmp_path / "straight", optimizer=optimizer), straight, digits, progress=False)

    step = loop_module.Run.step

    def press_ctrl_c_in_step_2(run, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, number)

    monkeypatch.setattr(loop_module.Run, "step", press_ctrl_c_in_step_2)
    with pytest.raises(TrainingInterrupted, match="Stopped after 3 of 6 steps; all is saved"):
        train(config(tmp_path / "resumed", optimizer=optimizer), make_models(), digits, progress=False)
    monkeypatch.setattr(loop_module.Run, "step", step)
    resumed = make_models(seed=5)  # other weights: all must come from the checkpoint
    train(config(tmp_path / "resumed", optimizer=optimizer), resumed, digits, progress=False)
    for a, b in zip(weights(straight), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_a_kill_in_the_middle_loses_nothing_but_steps(make_models, digits, tmp_path, monkeypatch):
    straight = make_models()
    train(config(tmp_path / "straight"), straight, digits, progress=False)
    step = loop_module.Run.step

    def killed(run, number):
        if number == 5:
            raise RuntimeError("killed")
        return step(run, number)

    monkeypatch.setattr(loop_module.Run, "step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config(tmp_path / "killed"), make_models(), digits, progress=False)
    monkeypatch.setattr(loop_module.Run, "step", step)
    newest = sorted((tmp_path / "killed/checkpoints").iterdir())[-1]
    (newest / "unet.safetensors").write_bytes(b"damaged")  # falls back to the one before
    resumed = make_models(seed=5)
    train(config(tmp_path / "killed"), resumed, digits, progress=False)
    for a, b in zip(weights(straight), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_a_finished_run_gives_its_weights_again(make_models, digits, tmp_path):
    first, again = make_models(), make_models(seed=5)
    train(config(tmp_path), first, digits, progress=False)
    train(config(tmp_path), again, digits, progress=False)
    for a, b in zip(weights(first), weights(again), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_another_model_are_refused(make_models, digits, tmp_path):
    train(config(tmp_path), make_models(), digits, progress=False)
    with pytest.raises(ValueError, match="must be of this unet, but hold another one"):
        train(config(tmp_path), make_models(layers_per_block=2), digits, progress=False)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training.json is damaged"):
        train(config(tmp_path), make_models(), digits, progress=False)


def test_seconds_add_up_over_calls(make_models, digits, tmp_path):
    seconds = train(config(tmp_path), make_models(), digits, progress=False)
    assert seconds > 0
    assert train(config(tmp_path), make_models(), digits, progress=False) == pytest.approx(seconds)


def test_the_result_is_the_average_not_the_last_step(make_models, digits, tmp_path):
    averaged, last = make_models(), make_models()
    train(config(tmp_path / "a", ema_decay=0.5), averaged, digits, progress=False)
    train(config(tmp_path / "b", ema_decay=0.0), last, digits, progress=False)
    assert not torch.equal(averaged.unet.conv_in.weight, last.unet.conv_in.weight)


def test_a_loss_that_is_not_finite_stops_the_run(make_models, digits, tmp_path):
    models = make_models()
    models.unet.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"loss of step 0 must be finite, got nan; lower `learning_rate`"):
        train(config(tmp_path), models, digits, progress=False)


def test_output_folders(make_models, digits, tmp_path):
    def start(folder, **values):
        train(config(folder, **values), make_models(), digits, progress=False)

    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else; choose another folder"):
        start(tmp_path / "full")
    with pytest.raises(FileExistsError, match="holds something else"):
        start(tmp_path / "full/thesis.txt")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    start(tmp_path / "run")
    assert json.loads((tmp_path / "run/training.json").read_text())["max_train_steps"] == 6
    with pytest.raises(ValueError, match=r"other settings, \{'batch_size': 8\} instead of \{'batch_size': 4\}"):
        start(tmp_path / "run", batch_size=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive and finite, got nan"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1.0"),
        ({"caption_dropout": -0.1}, r"`caption_dropout` must be in \[0, 1\], got -0.1"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of adamw, adamw8bit, prodigy, muon, got 'sgd'"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(Path("unused"), **({"max_train_steps": 1} | values))


def test_bfloat16(make_models, digits, tmp_path):
    from accelerate.state import AcceleratorState

    models = make_models()
    AcceleratorState._reset_state()
    try:
        train(config(tmp_path, mixed_precision="bf16"), models, digits, progress=False)
    finally:
        AcceleratorState._reset_state()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in models.parameters())
    inputs = (torch.randn(1, 1, 8, 8), 1, torch.randn(1, 3, 24))
    with torch.no_grad():
        assert models.unet(*inputs).sample.dtype == torch.float32  # autocast does not outlive the run
        assert torch.equal(models.unet(*inputs).sample, copy.deepcopy(models.unet)(*inputs).sample)
