"""metrics.jsonl is exact after any interruption; trackers get what it gets."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusers_crosswkv.finetuning.records import MetricsFile, Records, Trackers, check_trackers, read_metrics
from diffusers_crosswkv.training import StepMetrics


def a_run(step=0):
    return SimpleNamespace(step=step, accelerator=SimpleNamespace(is_main_process=True))


def some_metrics(step, loss=0.5):
    return StepMetrics(step, loss, 1e-3, 1.0, 20.0, 0)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(MetricsFile(path), Trackers((), "run", tmp_path), {})
    records.start(a_run())
    for step in range(1, 6):
        records.step(a_run(), some_metrics(step))
        records.validation(step, validation_loss=0.25)
    records.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    before = read_metrics(path)
    assert [line["step"] for line in before] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    records = Records(MetricsFile(path), Trackers((), "run", tmp_path), {})
    records.start(a_run(step=3))
    assert read_metrics(path) == before[:6]
    records.step(a_run(), some_metrics(4, loss=float("nan")))
    records.close()
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1], parse_constant=pytest.fail)  # no NaN in JSON
    assert len(lines) == 7
    assert (last["step"], last["loss"], last["grad_norm"]) == (4, None, 1.0)
    assert last["seconds"] >= before[5]["seconds"]


def test_killed_before_the_first_checkpoint(tmp_path):
    for _ in range(2):
        records = Records(MetricsFile(tmp_path / "metrics.jsonl"), Trackers((), "run", tmp_path), {})
        records.start(a_run())
        records.validation(0, validation_loss=0.25)
        records.step(a_run(), some_metrics(1))
        records.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_every_nth_step(tmp_path):
    records = Records(MetricsFile(tmp_path / "metrics.jsonl"), Trackers((), "run", tmp_path), {}, log_every=3)
    records.start(a_run())
    for step in range(1, 8):
        records.step(a_run(), some_metrics(step))
    records.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6]


def test_only_the_main_process_writes(tmp_path):
    records = Records(MetricsFile(tmp_path / "metrics.jsonl"), Trackers((), "run", tmp_path), {})
    run = SimpleNamespace(step=0, accelerator=SimpleNamespace(is_main_process=False))
    records.start(run)
    records.step(run, some_metrics(1))
    records.checkpoint(run, tmp_path)
    records.end(run)
    assert not list(tmp_path.iterdir())


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def trained(steps, start):
        trackers = Trackers(("tensorboard",), "run", tmp_path)
        records = Records(
            MetricsFile(tmp_path / "metrics.jsonl"), trackers, {"learning_rate": 0.1, "x": None, "y": ()}
        )
        records.start(a_run(start))
        for step in steps:
            records.step(a_run(), some_metrics(step, loss=step + start / 10))
        records.picture("validation", Image.new("RGB", (20, 10), "red"), steps[-1])
        records.close()

    trained([1, 2, 3], start=0)
    trained([2, 3], start=1)  # goes on from a checkpoint after step 1
    events = accumulator.EventAccumulator(str(tmp_path / "run"), purge_orphaned_data=True)
    events.Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.1), (3, 3.1)]
    (image,) = [event for event in events.Images("validation") if event.step == 3]
    assert (image.width, image.height) == (20, 10)
    assert list(tmp_path.glob("run/*/hparams.yml"))


def test_trackers_that_are_not_there(monkeypatch):
    check_trackers(())
    with pytest.raises(ValueError, match=r"`report_to` must be of .*tensorboard.* or none, got 'paper'"):
        check_trackers(("paper",))
    monkeypatch.setattr("diffusers_crosswkv.finetuning.records.get_available_trackers", list)
    with pytest.raises(
        ModuleNotFoundError, match=r"`--report_to comet_ml` needs the package comet-ml.*--report_to none"
    ):
        check_trackers(("comet_ml",))
