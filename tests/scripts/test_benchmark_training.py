import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import run_script

from diffusers_crosswkv.evaluation import training_speed, training_speed_report
from diffusers_crosswkv.evaluation.prompt_length import SOFTMAX
from diffusers_crosswkv.evaluation.training_speed import STATE, Case, Trainer

SCRIPT = Path(__file__).parents[2] / "scripts/benchmark_training.py"
CPU = torch.device("cpu")
PEAK_OF_AN_IMPORT = 100 * 2**20  # of torch alone


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        return run_script(monkeypatch, SCRIPT, *arguments), capsys.readouterr().out

    return call


def test_quick_benchmark(run, tmp_path):
    code, printed = run("--device", "cpu", "--quick", "--repetitions", 3, "--threads", 1, "--output-dir", tmp_path)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text(encoding="utf-8").splitlines()]
    by_place = {(row["direction"], row["implementation"]): row for row in rows}
    compared = [(how, side) for how in ("all", "attn2, gradient checkpointing") for side in (SOFTMAX, STATE)]
    assert by_place.keys() == {*compared, ("state", STATE)}
    for row in rows:
        assert row.keys() >= {"date", "commit", "code", "processor", "threads", "torch", "diffusers", "load_average"}
        assert 0 < row["q25_ms"] <= row["median_ms"] <= row["q75_ms"]
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"], rel=1e-3)
        assert row["repetitions"] == 3
        assert row["peak_bytes"] > PEAK_OF_AN_IMPORT
        assert ("speed" in row) == (row["implementation"] == STATE and row["trained"] != STATE)
    assert_reported(printed, tmp_path, by_place)


def assert_reported(printed, folder, by_place):
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert printed.endswith(page + "\n")
    softmax, state = by_place["all", SOFTMAX], by_place["all", STATE]
    cells = next(line for line in page.splitlines() if line.startswith("| all | 16 |")).strip("| ").split(" | ")
    assert cells[2].startswith(f"{softmax['images_per_second']:.4g} (")
    assert cells[3].startswith(f"{state['images_per_second']:.4g} (")
    assert cells[4] == f"{state['speed']:.3f} ({state['speed_q25']:.3f} to {state['speed_q75']:.3f})"
    assert cells[5:] == [f"{row['peak_bytes'] / 2**20:.1f} MiB" for row in (softmax, state)]
    (picture,) = folder.glob("*.png")
    assert f"]({picture.name})" in page
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.parametrize("side", [SOFTMAX, STATE])
@pytest.mark.parametrize("trained", ["all", "attn2"])
def test_a_step_trains_what_it_says(trained, side):
    trainer = Trainer(Case("dir7_tiny", 2, 5, trained), side, CPU)
    before = {name: x.clone() for name, x in trainer.unet.named_parameters()}
    for _ in range(2):  # some gradients are zero at first, where a factor is
        trainer()
    moved = {name for name, x in trainer.unet.named_parameters() if not torch.equal(x, before[name])}
    assert moved == {name for name in before if trained == "all" or ".attn2." in name}


def test_a_learned_state_is_trained_alone():
    trainer = Trainer(Case("dir7_tiny", 2, 5, STATE), STATE, CPU)
    states = [x.detach().clone() for x in trainer.learned.states]
    before = {name: x.clone() for name, x in trainer.unet.named_parameters()}
    trainer()
    assert not any(torch.equal(x, old) for x, old in zip(trainer.learned.states, states, strict=True))
    assert all(torch.equal(x, before[name]) for name, x in trainer.unet.named_parameters())


def test_relative_speed_is_of_rounds():
    slowed = training_speed.relative_speed([100.0, 300.0, 100.0], [200.0, 600.0, 200.0])
    assert slowed == {"speed": 0.5, "speed_q25": 0.5, "speed_q75": 0.5}


def test_what_fails_has_a_row_that_says_so(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no compiler\nfurther lines")

    monkeypatch.setattr(training_speed, "rows_of", fail)
    config = training_speed.BenchmarkConfig(tmp_path, quick=True)
    rows = training_speed.measure(config, progress=str)
    assert {row["not_run"] for row in rows} == {"RuntimeError: no compiler"}
    assert "not run: RuntimeError: no compiler" in training_speed_report.write_report(tmp_path)


def test_prompts_keep_half_of_their_tokens_or_more():
    kept = training_speed.mask_of(Case("dir7_tiny", 4, 77), CPU).sum(1)
    assert kept[0] == 77
    assert (kept >= 38).all() and (kept.diff() < 0).all()


def test_captions_are_short():
    kept = training_speed.mask_of(Case("dir7_tiny", 4, 77, captions=True), CPU).sum(1)
    assert kept.tolist() == [24, 20, 16, 12]


def test_bad_arguments(run, tmp_path):
    code, _ = run("--device", "cpu", "--threads", 0, "--output-dir", tmp_path / "rows")
    assert code == "error: `--threads` must be at least 1, got 0"
    assert not (tmp_path / "rows").exists()
