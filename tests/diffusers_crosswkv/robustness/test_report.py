"""The report of what goes wrong, which no run of the tests does."""

import dataclasses

import pytest

from diffusers_crosswkv.robustness.arms import PRESETS
from diffusers_crosswkv.robustness.report import bounds_table, language_table, prompt_table
from diffusers_crosswkv.robustness.suite import run_arm

GOOD = {"rms": 1.0, "max_rms": 2.0, "max_abs": 8.0, "stable_rank": 1.5, "min_stable_rank": 1.0, "finite": True}
BAD = dict.fromkeys(GOOD) | {"finite": False}


def training(*looks):
    return {
        "kind": "training",
        "arm": "state",
        "looks": [{"step": i, "layers": {"a": x}} for i, x in enumerate(looks)],
    }


def test_states_that_are_not_finite_are_counted():
    assert "| training | state | yes | 2 | 8 | 1.50 to 1.50 |" in bounds_table([training(GOOD, GOOD)])
    assert "| training | state | **1 of 2 not** | 2 | 8 | 1.50 to 1.50 |" in bounds_table([training(GOOD, BAD)])
    assert "| training | state | **none** |" in bounds_table([training(BAD, BAD)])


def test_statistics_over_steps_are_taken_apart():
    steps = {name: [value, value] for name, value in GOOD.items()}
    steps["finite"], steps["max_rms"] = [True, False], [3.0, None]
    row = {"kind": "sampling", "arm": "prefix", "layers": {"a": steps}}
    assert "| sampling | prefix | **1 of 2 not** | 3 | 8 |" in bounds_table([row])


def test_tokens_are_those_of_the_table():
    about = {"kind": "prompts", "arm": "state", "prompts": "as in training", "right": 0.5, "low": 0.4, "high": 0.6}
    rows = [about | {"drawn": 10, "endoftext": x, "tokens": [4 + x, 8 + x]} for x in (True, False)]
    assert "| as in training | 5 to 9 | 50.0 (40.0 to 60.0) | not run |" in prompt_table(rows, True)
    assert "| as in training | 4 to 8 |" in prompt_table(rows, False)


def test_languages_are_compared_over_the_same_prompts():
    def row(arm, prompts, share):
        shares = dict.fromkeys(("English", "Chinese", "Spanish", "French"), share)
        return {"kind": "prompts", "arm": arm, "prompts": prompts, "endoftext": True, "by_language": shares}

    rows = [row("state", "as in training", 0.9), row("state", "upper case", 0.1), row("paper", "as in training", 0.5)]
    assert "| English | 90.0% | not run | 50.0% | not run |" in language_table(rows)
    assert "| English | not run | not run | not run | not run |" in language_table([])


def test_rows_of_another_preset_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(PRESETS["smoke"], prompt_sets=(), lengths=(1,)))
    run_arm("softmax", "smoke", tmp_path, progress=False)
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(PRESETS["smoke"], drawn=20))
    with pytest.raises(ValueError, match="another setup"):
        run_arm("softmax", "smoke", tmp_path, progress=False)
