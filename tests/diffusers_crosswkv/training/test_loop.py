import copy
import dataclasses
import json
import os
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from pictures import write_image
from training_process import Losses, fifty_digits, tiny_config, tiny_models, weights_of
from vaes import tiny_vae

from diffusers_crosswkv.data.config import DataConfig
from diffusers_crosswkv.data.examples import BrokenImage, Example
from diffusers_crosswkv.data.loading import open_data
from diffusers_crosswkv.training import Callback, NoSpaceLeft, OutOfMemory, Run, TrainingConfig, TrainingInterrupted
from diffusers_crosswkv.training import loop as loop_module
from diffusers_crosswkv.training.batches import InMemoryExamples
from diffusers_crosswkv.training.checkpoints import checkpoint_folders, load_latest_checkpoint
from diffusers_crosswkv.training.failures import memory_advice

train = partial(loop_module.train, progress=False)
DIGITS = fifty_digits()


@pytest.fixture
def models_of(tokenizer):
    return partial(tiny_models, tokenizer=tokenizer)


def same(a, b):
    a, b = weights_of(a), weights_of(b)
    return all(torch.equal(a[name], b[name]) for name in a)


class At(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.number, self.action = step, action

    def step(self, run, metrics):
        if metrics.step == self.number:
            self.action(run)


def press_ctrl_c(run):
    os.kill(os.getpid(), signal.SIGINT)


def test_training_on_one_batch_lowers_its_loss(models_of, tmp_path):
    config = tiny_config(tmp_path, learning_rate=5e-3, lr_scheduler="constant", caption_dropout=0.0)
    run = Run(config, models_of(), InMemoryExamples(DIGITS, 4, 0), loop_module.make_accelerator(config))
    places = next(run.batches())
    losses = [run.train_step(places).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


SETTINGS = [
    {},
    {"caption_dropout": 0.0, "optimizer": "muon"},
    {"gradient_accumulation_steps": 2, "ema_decay": 0.0, "data_threads": 0},
    {"weights": "attn2", "ema_on_cpu": True},
    {"weights": "lora", "noise_offset": 0.1, "gradient_checkpointing": True},
    {"weights": "state", "min_snr_gamma": 5.0, "mixed_precision": "bf16"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_interrupted_and_straight_runs_are_bitwise_equal(models_of, tmp_path, settings, fresh_precision):
    models_of = partial(models_of, dropout=0.1)
    settings = {"checkpointing_steps": 100} | settings
    losses, straight = Losses(), models_of()
    whole = train(tiny_config(tmp_path / "a", **settings), straight, DIGITS, callbacks=[losses])

    first, second = Losses(stop_after=3), Losses()
    with pytest.raises(TrainingInterrupted, match="Stopped after 3 of 6 steps; all is saved"):
        train(tiny_config(tmp_path / "b", **settings), models_of(), DIGITS, callbacks=[first])
    # What is trained comes from the checkpoint alone; the rest has to be the model that was there.
    seed = 5 if settings.get("weights", "all") == "all" else 0
    resumed = train(tiny_config(tmp_path / "b", **settings), models_of(seed=seed), DIGITS, callbacks=[second])
    assert first.values | second.values == losses.values
    a, b = (result.denoiser.trained_state_dict() for result in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("cached", [False, True])
def test_latents_and_captions_from_a_cache_are_those_that_were_computed(models_of, tmp_path, cached):
    """A run that fills the cache, and one that is interrupted and finds a part of it, see the same numbers."""

    def run(folder, cache, stop_after=None):
        torch.manual_seed(1)
        models = models_of(vae=tiny_vae(), in_channels=4, out_channels=4)
        losses = Losses(stop_after=stop_after)
        config = tiny_config(folder, train_text_encoder=False, caption_dropout=0.3)
        train(config, models, source, callbacks=[losses], caches=cache if cached else None)
        return losses.values, weights_of(models)

    source = open_data(DataConfig("scenes:16", max_examples=10), 4)
    losses, straight = run(tmp_path / "a", tmp_path / "cache a")
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "b", tmp_path / "cache b", stop_after=2)
    resumed_losses, resumed = run(tmp_path / "b", tmp_path / "cache b")
    assert resumed_losses == {step: losses[step] for step in range(3, 7)}
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert len(list((tmp_path / "cache b").glob("latents/*/*"))) == (10 if cached else 0)


def test_a_kill_in_the_middle_loses_nothing_but_steps(models_of, tmp_path):
    straight = models_of()
    train(tiny_config(tmp_path / "straight"), straight, DIGITS)

    def killed(run):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tiny_config(tmp_path / "killed"), models_of(), DIGITS, callbacks=[At(5, killed)])
    newest = checkpoint_folders(tmp_path / "killed/checkpoints")[-1]
    (newest / "weights.safetensors").write_bytes(b"damaged")  # falls back to the one before
    resumed = models_of(seed=5)
    train(tiny_config(tmp_path / "killed"), resumed, DIGITS)
    assert same(straight, resumed)


def test_equal_settings_give_equal_weights_whatever_was_drawn_before(models_of, tmp_path):
    def run(folder):
        models = models_of(dropout=0.1)
        models.unet.eval()  # as from_pretrained gives it
        torch.rand(len(folder))
        return train(tiny_config(tmp_path / folder, weights="lora"), models, DIGITS).denoiser.trained_state_dict()

    a, b = run("a"), run("longer")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_gives_its_weights_again(models_of, tmp_path):
    first, again = models_of(), models_of(seed=5)
    train(tiny_config(tmp_path), first, DIGITS)
    train(tiny_config(tmp_path), again, DIGITS)
    assert same(first, again)


def test_checkpoints_of_another_model_are_refused(models_of, tmp_path):
    train(tiny_config(tmp_path / "a"), models_of(), DIGITS)
    with pytest.raises(ValueError, match=r"must be of this model, but hold another one \(.* differs\)"):
        train(tiny_config(tmp_path / "a"), models_of(layers_per_block=2), DIGITS)
    (tmp_path / "a/training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training.json is damaged"):
        train(tiny_config(tmp_path / "a"), models_of(), DIGITS)
    train(tiny_config(tmp_path / "b", weights="lora"), models_of(), DIGITS)
    with pytest.raises(ValueError, match="what is not trained differs"):
        train(tiny_config(tmp_path / "b", weights="lora"), models_of(seed=5), DIGITS)


def test_seconds_add_up_over_calls(models_of, tmp_path):
    seconds = train(tiny_config(tmp_path), models_of(), DIGITS).seconds
    assert seconds > 0
    assert train(tiny_config(tmp_path), models_of(), DIGITS).seconds == pytest.approx(seconds)


def test_the_result_is_the_average_not_the_last_step(models_of, tmp_path):
    averaged, last = models_of(), models_of()
    train(tiny_config(tmp_path / "a", ema_decay=0.5), averaged, DIGITS)
    train(tiny_config(tmp_path / "b", ema_decay=0.0), last, DIGITS)
    checkpoint = load_latest_checkpoint(tmp_path / "a/checkpoints").tensors
    name = "unet.conv_in.weight"
    assert torch.equal(averaged.unet.conv_in.weight, checkpoint["ema"][name])
    assert torch.equal(last.unet.conv_in.weight, checkpoint["weights"][name])
    assert not torch.equal(averaged.unet.conv_in.weight, last.unet.conv_in.weight)


def test_averages_are_lent_and_given_back(models_of, tmp_path):
    seen = []

    def look(run):
        before = run.models.unet.conv_in.weight.detach().clone()
        with run.averaged_weights() as denoiser:
            seen.append(run.models.unet.conv_in.weight.detach().clone())
            assert denoiser.unet is run.models.unet and not denoiser.unet.training
        assert torch.equal(run.models.unet.conv_in.weight, before) and run.models.unet.training
        assert not torch.equal(seen[0], before)

    watched, alone = models_of(), models_of()
    train(tiny_config(tmp_path / "a"), watched, DIGITS, callbacks=[At(4, look)])
    train(tiny_config(tmp_path / "b"), alone, DIGITS)
    assert seen and same(watched, alone)


def test_a_batch_in_parts_gives_the_same_losses(models_of, tmp_path):
    """At a low learning rate: Adam makes full steps of gradients that are mere rounding."""
    whole, parts = Losses(), Losses()
    slow = {"learning_rate": 2e-4}
    train(tiny_config(tmp_path / "a", **slow), models_of(), DIGITS, callbacks=[whole])
    train(tiny_config(tmp_path / "b", gradient_accumulation_steps=4, **slow), models_of(), DIGITS, callbacks=[parts])
    assert parts.values == pytest.approx(whole.values, rel=5e-5)


def poison(run):
    """Makes one gradient infinite, once."""
    weight = run.models.unet.conv_in.weight
    handle = weight.register_hook(lambda gradient: (handle.remove(), torch.full_like(gradient, torch.inf))[1])


def test_a_step_that_is_not_finite_is_left_out(models_of, tmp_path):
    weights, seen = [], []

    class Watch(Callback):
        def step(self, run, metrics):
            weights.append(run.models.unet.conv_in.weight.detach().clone())
            seen.append((metrics.grad_norm == float("inf"), metrics.bad_steps))

    result = train(tiny_config(tmp_path), models_of(), DIGITS, callbacks=[Watch(), At(2, poison)])
    assert seen == [(False, 0), (False, 0), (True, 1), (False, 1), (False, 1), (False, 1)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])
    assert result.tally.bad_steps == 1
    again = train(tiny_config(tmp_path), models_of(), DIGITS)
    assert again.tally.bad_steps == 1


def test_too_many_bad_steps_end_the_run_and_name_the_last_good_checkpoint(models_of, tmp_path):
    def poison_for_ever(run):
        run.models.unet.conv_in.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))

    message = r"were not in the last 3 steps, up to step 5; .*checkpoint-00000002 was saved before, and `resume_"
    config = partial(tiny_config, max_bad_steps=3)
    with pytest.raises(FloatingPointError, match=message):
        train(config(tmp_path / "a"), models_of(), DIGITS, callbacks=[At(2, poison_for_ever)])
    checkpoint = load_latest_checkpoint(tmp_path / "a/checkpoints")
    assert all(x.isfinite().all() for of in checkpoint.tensors.values() for x in of.values())
    broken = models_of()
    broken.unet.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="There is no checkpoint yet"):
        train(config(tmp_path / "b", checkpointing_steps=5), broken, DIGITS)


class Torn(InMemoryExamples):
    """Every fourth image cannot be read."""

    def example(self, step, slot, attempt=0):
        example = super().example(step, slot, attempt)
        if attempt == 0 and slot == 1:
            return Example(example.name, example.caption, example.identity, example.size, self.fail)
        return example

    def fail(self):
        raise BrokenImage("the file ends too early")


def test_images_that_cannot_be_read(models_of, tmp_path):
    source = Torn(DIGITS, 4, 0)
    with pytest.raises(TrainingInterrupted):
        train(tiny_config(tmp_path / "a"), models_of(), source, callbacks=[At(3, press_ctrl_c)])
    tally = train(tiny_config(tmp_path / "a"), models_of(), source).tally
    assert (tally.seen, tally.broken) == (24, 6) and set(tally.reasons.values()) == {"the file ends too early"}
    with pytest.raises(ValueError, match=r"At most 0% of the images may be broken .* but 1 of 5 are"):
        train(tiny_config(tmp_path / "b", max_bad_images=0.0), models_of(), source)


def test_a_cut_off_image_of_a_small_set_is_drawn_again_and_again(models_of, tmp_path):
    for i in range(6):
        path = write_image(tmp_path / f"images/{i}.png", 8, 8, seed=i, caption="a picture")
    path.write_bytes(path.read_bytes()[:-30])  # the header is whole
    data = DataConfig(str(tmp_path / "images"), resolution=8, cache_dir=tmp_path / "cache")
    source = open_data(data, 4, channels=1, multiple=4, progress=False)
    config = tiny_config(tmp_path / "run", max_train_steps=24, checkpointing_steps=24)
    tally = train(config, models_of(), source).tally
    assert tally.broken > 10 and list(tally.reasons) == ["5.png"]


def test_a_full_disk_leaves_the_last_checkpoint(models_of, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # files end after 10,000 bytes

    straight, models = models_of(), models_of(seed=5)
    train(tiny_config(tmp_path / "a"), straight, DIGITS)
    try:
        with pytest.raises(NoSpaceLeft, match=r"The checkpoint of step 4 could not be written .*00000002 is whole"):
            train(tiny_config(tmp_path / "b"), models_of(), DIGITS, callbacks=[At(3, fill_disk)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "b/checkpoints").iterdir()] == ["checkpoint-00000002"]
    train(tiny_config(tmp_path / "b"), models, DIGITS)
    assert same(straight, models)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_out_of_memory(models_of, tmp_path, monkeypatch, error):
    def full(*arguments):
        raise error

    monkeypatch.setattr(Run, "loss", full)
    with pytest.raises(OutOfMemory, match=r"`gradient_checkpointing` .*; raise `gradient_accumulation_steps` from"):
        train(tiny_config(tmp_path), models_of(), DIGITS)


def test_an_allocation_that_cannot_be_met(models_of, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "loss", lambda *arguments: torch.empty(2**60))
    with pytest.raises(OutOfMemory):
        train(tiny_config(tmp_path), models_of(), DIGITS)


def test_a_validation_that_does_not_fit(models_of, tmp_path):
    class Greedy(Callback):
        def pause(self, run, metrics):
            torch.empty(2**60)

    with pytest.raises(OutOfMemory, match="Validation must fit into memory"):
        train(tiny_config(tmp_path, checkpointing_steps=1), models_of(), DIGITS, callbacks=[Greedy()])
    assert len(checkpoint_folders(tmp_path / "checkpoints")) == 1  # saved before


def test_memory_advice_names_what_is_not_in_use_yet():
    config = tiny_config("unused", gradient_checkpointing=True, mixed_precision="bf16", weights="lora")
    assert memory_advice(config, num_processes=4).endswith("most: set `ema_on_cpu`; lower the resolution.")


def test_callbacks(models_of, tmp_path):
    calls = []

    class Diary(Callback):
        def start(self, run):
            calls.append(("start", run.step))

        def step(self, run, metrics):
            assert metrics.step == run.step and metrics.images_per_second > 0 and metrics.learning_rate >= 0
            calls.append(("step", metrics.step))

        def checkpoint(self, run, folder):
            assert (folder / "manifest.json").is_file()
            calls.append(("checkpoint", run.step))

        def pause(self, run, metrics):
            calls.append(("pause", metrics.step))

        def end(self, run):
            calls.append(("end", run.step))

    train(tiny_config(tmp_path, max_train_steps=3), models_of(), DIGITS, callbacks=[Diary()])
    first = [("step", 1), ("pause", 1)]
    steps = [*first, *((name, step) for step in (2, 3) for name in ("step", "checkpoint", "pause"))]
    assert calls == [("start", 0), *steps, ("end", 3)]
    calls.clear()
    train(tiny_config(tmp_path, max_train_steps=3), models_of(), DIGITS, callbacks=[Diary()])
    assert calls == [("start", 3), ("end", 3)]


def test_output_folders(models_of, tmp_path):
    def start(folder, **values):
        train(tiny_config(folder, **values), models_of(), DIGITS)

    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else; choose another folder"):
        start(tmp_path / "full")
    with pytest.raises(FileExistsError, match="holds something else"):
        start(tmp_path / "full/thesis.txt")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    start(tmp_path / "run", max_train_steps=2)
    assert json.loads((tmp_path / "run/training.json").read_text())["max_train_steps"] == 2
    with pytest.raises(ValueError, match=r"other settings, \{'batch_size': 4\} instead of \{'batch_size': 8\}"):
        start(tmp_path / "run", max_train_steps=2, batch_size=8)
    start(tmp_path / "run", max_train_steps=2, checkpointing_steps=7, data_threads=0)  # of no consequence
    with pytest.raises(ValueError, match="say `resume_with_new_settings` to go on with these"):
        start(tmp_path / "run", max_train_steps=3)
    (tmp_path / "early").mkdir()
    (tmp_path / "early/training.json").write_text(json.dumps(tiny_config(tmp_path / "early").settings()))
    start(tmp_path / "early", max_train_steps=2, batch_size=8)  # of a run that saved nothing nothing is lost


class Rates(Callback):
    def __init__(self):
        self.of_steps = {}

    def step(self, run, metrics):
        self.of_steps[metrics.step] = metrics.learning_rate, run.optimizer.param_groups[0]["weight_decay"]


def test_going_on_with_new_settings(models_of, tmp_path):
    """Rates are those of the new settings, at the step where the run is; the rest is as it was."""
    short = {"lr_scheduler": "constant", "max_train_steps": 4}
    new = {"lr_scheduler": "linear", "learning_rate": 1e-4, "max_train_steps": 8, "weight_decay": 0.5}
    train(tiny_config(tmp_path / "a", **short), models_of(), DIGITS)
    straight, renewed = Rates(), Rates()
    train(tiny_config(tmp_path / "b", **new), models_of(), DIGITS, callbacks=[straight])
    config = tiny_config(tmp_path / "a", **new, resume_with_new_settings=True)
    train(config, models_of(), DIGITS, callbacks=[renewed])
    assert renewed.of_steps == {step: straight.of_steps[step] for step in range(5, 9)}
    train(tiny_config(tmp_path / "a", **new), models_of(), DIGITS)  # they are the run's now
    with pytest.raises(ValueError, match=r"\{'lora_rank': 16\} instead of \{'lora_rank': 8\}; use the same settings"):
        train(dataclasses.replace(config, lora_rank=8), models_of(), DIGITS)


def test_less_memory_changes_no_run(models_of, tmp_path):
    straight, thrifty = models_of(), models_of()
    train(tiny_config(tmp_path / "a"), straight, DIGITS)
    with pytest.raises(TrainingInterrupted):
        train(tiny_config(tmp_path / "b"), models_of(), DIGITS, callbacks=[At(3, press_ctrl_c)])
    less = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "ema_on_cpu": True}
    train(tiny_config(tmp_path / "b", **less), thrifty, DIGITS)
    for name, x in weights_of(straight).items():
        torch.testing.assert_close(weights_of(thrifty)[name], x, rtol=1e-3, atol=1e-4)


def test_no_checkpoint_is_saved_among_bad_steps(models_of, tmp_path):
    broken = [At(step, lambda run: run.tally.count_step(good=False)) for step in (2, 3)]
    saved = []

    class Saved(Callback):
        def checkpoint(self, run, folder):
            saved.append(run.step)

    train(tiny_config(tmp_path, checkpointing_steps=1, max_bad_steps=5), models_of(), DIGITS,
          callbacks=[*broken, Saved()])  # fmt: skip
    assert saved == [1, 4, 5, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive and finite, got nan"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1.0"),
        ({"caption_dropout": -0.1}, r"`caption_dropout` must be in \[0, 1\], got -0.1"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of adamw, adamw8bit, prodigy, muon, got 'sgd'"),
        (
            {"batch_size": 6, "gradient_accumulation_steps": 4},
            r"must be a multiple of `gradient_accumulation_steps` \(4\)",
        ),
        ({"weights": "none"}, "`weights` must be one of all, attn2, lora, state, got 'none'"),
        ({"min_snr_gamma": 0}, "`min_snr_gamma` must be positive or None, got 0"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(Path("unused"), **({"max_train_steps": 1} | values))


@pytest.fixture
def fresh_precision():
    """Accelerate keeps the first precision of a process for good."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bfloat16(models_of, tmp_path, fresh_precision):
    models = models_of()
    train(tiny_config(tmp_path, mixed_precision="bf16"), models, DIGITS)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in weights_of(models).values())
    inputs = (torch.randn(1, 1, 8, 8), 1, torch.randn(1, 3, 24))
    with torch.no_grad():
        assert models.unet(*inputs).sample.dtype == torch.float32  # autocast does not outlive the run
        assert torch.equal(models.unet(*inputs).sample, copy.deepcopy(models.unet)(*inputs).sample)


def test_float16_needs_a_gpu(models_of, tmp_path, fresh_precision):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="`mixed_precision` fp16 needs a GPU, and there is none; use bf16 or no"):
        train(tiny_config(tmp_path, mixed_precision="fp16"), models_of(), DIGITS)
