"""The log of states: at the asked steps, whole after an interruption, and without effect on what is trained."""

import pytest
from training_process import Losses, fifty_digits, tiny_config, tiny_models, weights_of

from diffusers_crosswkv.finetuning import finetune
from diffusers_crosswkv.finetuning.records import MetricsFile, read_metrics
from diffusers_crosswkv.finetuning.state_log import STATES_FILE, StateLog, as_json
from diffusers_crosswkv.models.state_statistics import StateStatistics
from diffusers_crosswkv.training import TrainingInterrupted, train


def run(folder, steps, logged=True, losses=None):
    """Train tiny models on digits; the models and what was logged."""
    log = StateLog(MetricsFile(folder / STATES_FILE), ["a handwritten seven", "三"], every=2)
    callbacks = [log] if logged else []
    models = tiny_models()
    try:
        config = tiny_config(folder / "training", max_train_steps=steps)
        train(config, models, fifty_digits(), callbacks=[*callbacks, *([losses] if losses else [])], progress=False)
    finally:
        log.close()
    return models, read_metrics(folder / STATES_FILE)


def test_looks_at_every_layer_and_changes_nothing(tmp_path):
    plain, nothing = run(tmp_path / "plain", 5, logged=False)
    models, looks = run(tmp_path / "logged", 5)
    assert nothing == []
    assert [look["step"] for look in looks] == [0, 2, 4, 5]
    layers = [name.removesuffix(".crosswkv") for name, _ in models.unet.named_modules() if name.endswith(".crosswkv")]
    for look in looks:
        assert sorted(look["layers"]) == sorted(layers)
        assert all(found["finite"] and found["rms"] > 0 for found in look["layers"].values())
    assert looks[0]["layers"] != looks[-1]["layers"]
    expected = weights_of(plain)
    assert all(weight.equal(expected[name]) for name, weight in weights_of(models).items())


def test_goes_on_after_an_interruption(tmp_path):
    _, expected = run(tmp_path / "whole", 6)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", 6, losses=Losses(stop_after=3))
    _, looks = run(tmp_path / "parts", 6)
    assert looks == expected


def test_through_the_training_command(make_settings, tmp_path):
    finetune(make_settings(log_states_every=3, max_train_steps=4), progress=False)
    assert [look["step"] for look in read_metrics(tmp_path / "run" / STATES_FILE)] == [0, 3, 4]


def test_what_is_no_number_is_null():
    nan = float("nan")
    found = as_json(StateStatistics(nan, nan, nan, nan, nan, finite=False))
    assert found["rms"] is None
    assert found["finite"] is False


@pytest.mark.parametrize(("captions", "every"), [([], 1), (["a"], 0)])
def test_nothing_to_look_at_is_refused(tmp_path, captions, every):
    with pytest.raises(ValueError, match="at least 1 with a caption"):
        StateLog(MetricsFile(tmp_path / STATES_FILE), captions, every)


def test_a_wrong_number_of_steps_is_refused(make_settings):
    with pytest.raises(ValueError, match="`log_states_every` must be at least 1, got 0"):
        make_settings(log_states_every=0).check()
