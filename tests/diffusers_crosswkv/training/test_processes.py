"""Several processes (gloo on a CPU) train as one does: replicated (DDP), sharded (FSDP2), with DeepSpeed (ZeRO)."""

import importlib.util
import json

import pytest
from running import run_script_in_processes
from training_process import SCRIPT, Losses, Poison, fifty_digits, tiny_config, tiny_models, weights_of

from diffusers_crosswkv.training import train

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResnetBlock2D,FeedForward",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"}
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and weights of one process with batches of 4."""
    losses, models = Losses(), tiny_models()
    train(tiny_config(tmp_path_factory.mktemp("alone")), models, fifty_digits(), callbacks=[losses], progress=False)
    return losses.values, weights_of(models)


def run_two(folder, environment=None, parameters="Parameter", **settings):
    """Two processes with batches of 2 each; returns the losses that they report.

    `parameters`: the class that the U-Net's must have while they are trained.
    """
    report = folder.with_suffix(".json")
    arguments = (json.dumps({"output_dir": str(folder)} | settings), report)
    environment = {"ACCELERATE_USE_CPU": "true"} | (environment or {})
    first, _ = run_script_in_processes(SCRIPT, arguments, 2, environment)
    assert f"training {parameters} in 2 processes" in first
    return {int(step): loss for step, loss in json.loads(report.read_text()).items()}


def assert_like_one_process(alone, losses, folder, **settings):
    """Losses agree to rounding, and so do the weights, read by one process from the checkpoint of two.

    Adam's first updates are as large for small gradients as for large ones: from 1e-7 rounding grows tenfold a step.
    """
    expected_losses, expected = alone
    bars = {step: 1e-5 if step <= 3 else 1e-3 for step in expected_losses}
    assert losses == {step: pytest.approx(loss, rel=bars[step]) for step, loss in expected_losses.items()}
    models = tiny_models(seed=5)
    train(tiny_config(folder, **settings), models, fifty_digits(), progress=False)
    got = weights_of(models)
    difference = sum((got[name] - x).square().sum() for name, x in expected.items()).sqrt()
    moved = sum(
        (x - y).square().sum() for x, y in zip(expected.values(), weights_of(tiny_models()).values(), strict=True)
    )
    assert difference < 1e-2 * moved.sqrt()


def test_two_processes_train_as_one(alone, tmp_path):
    losses = run_two(tmp_path / "run")
    assert_like_one_process(alone, losses, tmp_path / "run")


@needs_deepspeed
def test_deepspeed_saves_and_resumes(alone, tmp_path):
    first = run_two(tmp_path / "run", ZERO, stop_after=3)
    second = run_two(tmp_path / "run", ZERO)
    assert sorted(first) == [1, 2, 3] and sorted(second) == [4, 5, 6]
    assert_like_one_process(alone, first | second, tmp_path / "run")


@needs_deepspeed
def test_one_process_goes_on_where_deepspeed_stopped(alone, tmp_path):
    first = run_two(tmp_path / "run", ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, stop_after=3)
    rest = Losses()
    train(tiny_config(tmp_path / "run"), tiny_models(), fifty_digits(), callbacks=[rest], progress=False)
    assert first | rest.values == pytest.approx(alone[0], rel=1e-4)


@pytest.mark.parametrize("environment", [{}, pytest.param(ZERO, marks=needs_deepspeed)], ids=["ddp", "deepspeed"])
def test_steps_that_are_not_finite_are_left_out_everywhere(environment, tmp_path):
    losses, models = Losses(), tiny_models()
    config = tiny_config(tmp_path / "alone")
    result = train(config, models, fifty_digits(), callbacks=[losses, Poison()], progress=False)
    assert result.tally.bad_steps == 2 and losses.values[3] == float("inf")
    two = run_two(tmp_path / "run", environment, poisoned=True, gradient_accumulation_steps=2)
    expected = losses.values, weights_of(models)
    assert_like_one_process(expected, two, tmp_path / "run", gradient_accumulation_steps=2)


def test_shards_save_and_resume(alone, tmp_path):
    in_parts = {"gradient_accumulation_steps": 2}
    first = run_two(tmp_path / "run", SHARDED, "DTensor", stop_after=3, **in_parts)
    second = run_two(tmp_path / "run", SHARDED, "DTensor", **in_parts)
    assert sorted(first) == [1, 2, 3] and sorted(second) == [4, 5, 6]
    assert_like_one_process(alone, first | second, tmp_path / "run", **in_parts)
