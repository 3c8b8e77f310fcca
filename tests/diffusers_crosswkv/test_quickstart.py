"""What a finished quickstart knows of its model."""

import json

import pytest

from diffusers_crosswkv.quickstart import model_facts

REPORT = {
    "agreement": {"overall": 0.75, "per_language": {"English": 1.0, "French": 0.5}, "count": 40},
    "held_out_accuracy": 0.99,
    "training_seconds": 331.0,
    "environment": {"device": "cpu", "threads": 1, "cores": 2},
}


def write(folder, report):
    (folder / "training.json").write_text(json.dumps({"max_train_steps": 1200, "batch_size": 32}))
    (folder / "report.json").write_text(json.dumps(report))


def test_facts_are_those_of_the_run(tmp_path):
    write(tmp_path, REPORT)
    facts = model_facts(tmp_path)
    assert (facts.steps, facts.batch_size, facts.training_seconds) == (1200, 32, 331.0)
    assert facts.hardware == "1 of 2 CPU cores"
    assert [metric.value for metric in facts.metrics] == [0.75, 1.0, 0.5]
    assert "99.0%" in facts.metrics[0].how
    assert facts.license is None


def test_where_it_was_trained_is_unknown_if_only_drawing_was_done_here(tmp_path):
    write(tmp_path, {**REPORT, "training_seconds": None})
    facts = model_facts(tmp_path)
    assert facts.hardware is None and facts.training_seconds is None


def test_an_unfinished_run_has_no_facts(tmp_path):
    with pytest.raises(FileNotFoundError):
        model_facts(tmp_path)
