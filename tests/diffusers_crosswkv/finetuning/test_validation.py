"""Validation is the same question every time, whoever answers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusers_crosswkv.finetuning.preparation import prepare
from diffusers_crosswkv.finetuning.records import MetricsFile, Records, Trackers
from diffusers_crosswkv.finetuning.validation import TIMES_PER_EXAMPLE, Validation, latest_picture
from diffusers_crosswkv.training import Run, make_accelerator


@pytest.fixture
def make_run(make_settings, tmp_path):
    """A run between two steps, and its validation."""

    def make(**settings):
        config = make_settings(validation_prompts=("a seven", "an eight", "a nine"), **settings)
        accelerator = make_accelerator(config.training)
        prepared = prepare(config, accelerator, progress=False)
        run = Run(config.training, prepared.start.models, prepared.data, accelerator)
        records = Records(MetricsFile(tmp_path / "metrics.jsonl"), Trackers((), "run", tmp_path), {})
        prompts = config.validation.prompts()
        validation = Validation(
            prepared.start, config.validation, prompts, prepared.data.holdout, records, Path(tmp_path)
        )
        return run, validation

    return make


def loss_of(run, validation):
    with run.averaged_weights() as denoiser:
        return validation.loss(run, denoiser)


def sheet_of(run, validation, step=7):
    with run.averaged_weights() as denoiser:
        return validation.sheet(run, denoiser, step)


def train_a_little(run):
    batches = run.batches()
    for _ in range(2):
        run.train_step(next(batches))
    batches.close()


def test_the_loss_is_a_function_of_the_weights(make_run):
    run, validation = make_run()
    first = loss_of(run, validation)
    torch.manual_seed(123)  # whatever else is drawn
    assert loss_of(run, validation) == first
    assert loss_of(*make_run()) == first
    train_a_little(run)
    assert loss_of(run, validation) != first


def test_its_times_stand_for_those_of_training(make_run):
    run, validation = make_run()
    questions = [question for group in validation.ask(run) for question in group.questions]
    times = sorted(int(question.time) for question in questions)
    assert len(times) == 4 * TIMES_PER_EXAMPLE
    assert [round(time / 1000 * len(times)) for time in times] == pytest.approx(
        [i + 0.5 for i in range(len(times))], abs=1.1
    )
    assert len({question.seed for question in questions}) == len(questions)


class Others:
    """Stands for one of several processes; what each of them says is gathered."""

    def __init__(self, run, index, count, said):
        self._run, self._said = run, said
        self.accelerator = SimpleNamespace(
            process_index=index,
            num_processes=count,
            device=run.accelerator.device,
            autocast=run.accelerator.autocast,
        )

    def __getattr__(self, name):
        return getattr(self._run, name)

    def gather_objects(self, value):
        self._said.append(value)
        return self._said


@pytest.mark.parametrize("count", [2, 9])  # 9: more than there is to do
def test_it_does_not_depend_on_the_number_of_processes(make_run, monkeypatch, count):
    monkeypatch.setattr("diffusers_crosswkv.finetuning.validation.AT_ONCE", 3)
    run, validation = make_run()
    loss, sheet = loss_of(run, validation), sheet_of(run, validation)
    losses, rows = [], []
    for index in range(count):
        other = Others(run, index, count, losses)
        last_loss = loss_of(other, validation)
        other = Others(run, index, count, rows)
        if index == count - 1:
            assert sheet_of(other, validation).tobytes() == sheet.tobytes()
        else:
            monkeypatch.setattr("diffusers_crosswkv.finetuning.validation.contact_sheet", lambda *_: None)
            sheet_of(other, validation)
            monkeypatch.undo()
            monkeypatch.setattr("diffusers_crosswkv.finetuning.validation.AT_ONCE", 3)
    assert last_loss == loss


def test_the_run_is_not_disturbed(make_run):
    """Steps after a validation are those without it."""
    results = []
    for watched in (False, True):
        run, validation = make_run()
        batches = run.batches()
        run.train_step(next(batches))
        if watched:
            validation.records.metrics.open(0)
            validation.validate(run, 1)
            validation.records.close()
        results.append(run.train_step(next(batches)).loss)
        batches.close()
    assert results[0] == results[1]
    assert latest_picture(validation.folder).name == "step-000001.png"
