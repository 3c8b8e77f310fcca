import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import run_script
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_crosswkv.efficiency import pipeline_benchmark, pipeline_memory, pipeline_report
from diffusers_crosswkv.efficiency.pipeline_benchmark import DECODE, IMAGE, SCAN, STEP, TEXT, Measurement
from diffusers_crosswkv.efficiency.pipeline_flops import FlopCount, count, papers_formula
from diffusers_crosswkv.efficiency.pipeline_memory import MemoryMeasurement
from diffusers_crosswkv.efficiency.pipeline_process import Order, draw, in_fresh_process
from diffusers_crosswkv.efficiency.pipeline_sides import SIDES, STATE, Pipelines, letter_tokenizer, text_of_length
from diffusers_crosswkv.evaluation.kernel_benchmark import BenchmarkConfig
from diffusers_crosswkv.evaluation.prompt_length import SOFTMAX

SCRIPT = Path(__file__).parents[2] / "scripts/benchmark_pipeline.py"
CPU = torch.device("cpu")
PEAK_OF_AN_IMPORT = 100 * 2**20  # of torch alone
TORCHAO = importlib.util.find_spec("torchao") is not None


@pytest.fixture(scope="module")
def pipelines():
    return Pipelines.make("dir7_tiny", CPU, torch.float32)


@pytest.fixture(scope="module")
def flops(pipelines):
    return FlopCount(pipelines.unets)


@pytest.fixture
def in_this_process(monkeypatch):
    """Importing everything anew in each process takes longest; `test_a_process_of_its_own` does it once."""
    monkeypatch.setattr(pipeline_memory, "in_fresh_process", draw)


def rows_in(folder):
    lines = (folder / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        (row["direction"], row["width"], row["text_tokens"], row["implementation"]): row
        for row in map(json.loads, lines)
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # of torchao
def test_quick_benchmark(monkeypatch, capsys, tmp_path, in_this_process):
    """Once whole; then nothing is left to measure."""
    arguments = ("--device", "cpu", "--quick", "--repetitions", 3, "--threads", 1, "--output-dir", tmp_path)
    assert run_script(monkeypatch, SCRIPT, *arguments) == 0
    printed, rows = capsys.readouterr().out, rows_in(tmp_path)
    for row in rows.values():
        assert row.keys() >= {"date", "commit", "code", "processor", "threads", "torch", "diffusers", "load_average"}
    assert_parts(rows)
    assert_memory(rows)
    assert_reported(printed, tmp_path, rows)
    before = (tmp_path / "cpu.jsonl").read_bytes()
    assert run_script(monkeypatch, SCRIPT, *arguments) == 0
    assert (tmp_path / "cpu.jsonl").read_bytes() == before


def assert_parts(rows):
    parts = {key: row for key, row in rows.items() if not key[0].startswith(pipeline_memory.KIND)}
    expected = {(STEP, size, length, side) for size in (64, 128) for length in (10, 100) for side in SIDES}
    expected |= {(TEXT, 0, length, TEXT) for length in (10, 100)} | {(SCAN, 0, length, STATE) for length in (10, 100)}
    expected |= {(DECODE, size, 0, DECODE) for size in (64, 128)} | {(IMAGE, 64, 10, side) for side in SIDES}
    assert parts.keys() == expected
    for (part, *_), row in parts.items():
        assert 0 < row["q25_ms"] <= row["median_ms"] <= row["q75_ms"]
        assert row["repetitions"] == 3 and row["warm_up"] and row["steps"] == 4
        assert ("peak_bytes" in row) == (part != IMAGE)
    for size in (64, 128):
        works = {(n, side): rows[STEP, size, n, side]["flops"] for n in (10, 100) for side in SIDES}
        assert works[10, SOFTMAX] < works[100, SOFTMAX]
        assert works[10, STATE] == works[100, STATE]


def assert_memory(rows):
    options = ["as loaded", "int8, text encoder dropped"]
    for side in SIDES:
        plain, small = (rows[pipeline_memory.KIND + option, 64, 10, side] for option in options)
        assert PEAK_OF_AN_IMPORT < plain["imported_bytes"] <= plain["loaded_bytes"] <= plain["peak_bytes"]
        assert plain["image_ms"] > 48 * plain["step_ms"] > 0
        if TORCHAO:
            assert 0 < small["error"] < 0.1
        else:
            assert small["not_run"] == "torchao is not installed"


def assert_reported(printed, folder, rows):
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert printed.endswith(page + "\n")
    cells = next(line for line in page.splitlines() if line.startswith("| 128 | 100 |")).strip("| ").split(" | ")
    once = rows[TEXT, 0, 100, TEXT]["median_ms"] + rows[DECODE, 128, 0, DECODE]["median_ms"]
    softmax, state = (4 * rows[STEP, 128, 100, side]["median_ms"] + once for side in SIDES)
    state += rows[SCAN, 0, 100, STATE]["median_ms"]
    assert cells[2].startswith(f"{1e-3 * softmax:.4g} (")
    assert cells[3].startswith(f"{1e-3 * state:.4g} (")
    assert cells[4] == f"**{softmax / state:.2f}**"
    assert "Images drawn whole by the pipelines: softmax, 64 pixels, 10 tokens" in page
    assert "**not run**. Command: `python scripts/benchmark_pipeline.py --device cuda`" in page
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert f"]({picture.name})" in page
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.parametrize("length", [*pipeline_benchmark.LENGTHS, *pipeline_benchmark.QUICK_LENGTHS])
def test_prompts_have_the_length_they_say(pipelines, length):
    windows = pipelines.state.prompt_windows(text_of_length(length))
    assert sum(map(len, windows)) == length
    assert len(letter_tokenizer()(text_of_length(70)).input_ids) == 70


def test_both_sides_read_the_same_embeddings(pipelines):
    """One prompt, one negative prompt; the part that is summed is the part that the pipeline runs."""
    with torch.inference_mode():
        embeds = pipelines.encode(100)
        assert embeds.shape == (2, 100, 64) and not torch.equal(*embeds)
        states = pipelines.scan(embeds)
        own = [pipelines.state.encode_prompt_state(prompt_embeds=x) for x in embeds.split(1)]
        for ours, *theirs in zip(states.states, *(state.states for state in own), strict=True):
            assert torch.equal(ours, torch.cat(theirs))


@pytest.mark.parametrize("side", SIDES)
def test_flops_are_those_of_the_products(pipelines, flops, side):
    """What the meta device counts is what runs, if attention runs as plain products."""
    unets = pipelines.unets
    latents, text, timestep = torch.randn(2, 1, 8, 8), torch.randn(2, 30, 64), torch.tensor(500)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        state = unets.crosswkv.encode_prompt(text)
        if side == SOFTMAX:
            run = count(lambda: unets.softmax(latents, timestep, text))
        else:
            read = {"cross_attention_kwargs": {"prompt_state": state}}
            run = count(lambda: unets.crosswkv(latents, timestep, None, **read))
            whole = count(lambda: unets.crosswkv(latents, timestep, text)).total
            assert flops.scan(30) == pytest.approx(whole - run.total, rel=0.05)
    assert flops.step(side, 64, 30) == run
    assert 0 < run.cross_attention < run.total


def test_papers_formula(pipelines):
    """13 T H N over all layers, H N being the block's width; both samples."""
    tokens = [64, 16, 16, 16, 16, 64, 64]  # at 8 x 8 latents: down, down, middle, up, up
    assert papers_formula(pipelines.unets, 64) == 2 * 13 * 32 * sum(tokens)
    assert papers_formula(pipelines.unets, 128) == 4 * papers_formula(pipelines.unets, 64)


@pytest.fixture
def measurement(tmp_path):
    return Measurement(BenchmarkConfig(tmp_path, quick=True, repetitions=3), progress=False)


def put(measurement, case_of, **row):
    part, size, length, side = case_of
    shape = {"kind": "dir7_tiny", "direction": part, "batch": 1, "width": size, "tokens": (size // 8) ** 2}
    measurement.file.put([measurement.about | shape | {"text_tokens": length, "implementation": side} | row])


def reason(measurement, part, size, length, flops):
    case = pipeline_benchmark.Case("dir7_tiny", part, 1, size, (size // 8) ** 2, length)
    return (measurement.too_much(case, flops) or {}).get("not_run")


def test_what_would_take_too_long_is_not_run(measurement):
    measurement.sizes, measurement.lengths = (64, 128, 256), (10, 77)
    for length in (10, 77):
        for side in SIDES:
            put(measurement, (STEP, 64, length, side), median_ms=1000.0, flops=100)
    few = "one step would take about 5 s: measured at 77 and 4000 tokens alone"
    assert reason(measurement, STEP, 128, 10, dict.fromkeys(SIDES, 500)) == few
    assert reason(measurement, STEP, 128, 77, dict.fromkeys(SIDES, 500)) is None
    assert reason(measurement, STEP, 128, 10, dict.fromkeys(SIDES, 300)) is None
    put(measurement, (STEP, 128, 10, SOFTMAX), not_run=few)
    for length in (10, 77):  # from the largest size that was measured
        too_long = "one step would take about 500 s"
        assert reason(measurement, STEP, 256, length, {SOFTMAX: 50000, STATE: 7000}) == too_long
    once = "one step would take about 100 s: measured at 77 tokens alone"
    assert reason(measurement, STEP, 256, 10, {SOFTMAX: 10000, STATE: 7000}) == once
    assert reason(measurement, STEP, 256, 77, {SOFTMAX: 10000, STATE: 7000}) is None
    assert reason(measurement, STEP, 64, 10, dict.fromkeys(SIDES, 10**9)) is None


@pytest.mark.parametrize(("seconds", "count"), [(1.0, 3), (5.0, 2), (61.0, 1)])
def test_slow_calls_are_made_less_often(measurement, monkeypatch, seconds, count):
    """Two rounds after a warm-up that does not count; the first counts where there is none."""
    rounds = []

    def take_turns(calls, stopwatch, number, longest):
        rounds.append(2 if number > 1 else 1)
        return {side: [1e3 * seconds] * rounds[-1] for side in calls}

    monkeypatch.setattr(pipeline_benchmark, "take_turns", take_turns)
    rows = measurement.timed({side: lambda: None for side in SIDES})
    assert sum(rounds) == count
    assert all(row["median_ms"] == 1e3 * seconds and row["warm_up"] == (seconds < 4) for row in rows.values())


def test_reasons_are_said_once():
    reasons = [f"one step would take about {x} s: measured at 77 tokens alone" for x in (20.4, 15.1, 3e2)]
    said = pipeline_report.without_repetition([*reasons, "no memory"])
    assert said == "one step would take about 15.1 to 300 s: measured at 77 tokens alone; no memory"
    assert pipeline_report.without_repetition(reasons[:1]) == reasons[0]


def test_what_would_not_fit_is_not_run(measurement, monkeypatch):
    put(measurement, (DECODE, 64, 0, DECODE), median_ms=10.0, peak_bytes=10**9)
    monkeypatch.setattr(pipeline_benchmark, "free_memory", lambda: 5 * 10**9)
    assert reason(measurement, DECODE, 128, 0, {DECODE: 0}) == "would need about 4 GB of memory, 5 GB are free"
    monkeypatch.setattr(pipeline_benchmark, "free_memory", lambda: 6 * 10**9)
    assert reason(measurement, DECODE, 128, 0, {DECODE: 0}) is None
    measurement.sizes = (64, 128, 256)
    put(measurement, (DECODE, 128, 0, DECODE), median_ms=10.0)  # too slow for its memory to be found
    assert reason(measurement, DECODE, 256, 0, {DECODE: 0}) == "would need about 16 GB of memory, 6 GB are free"


def test_a_process_of_its_own(pipelines, tmp_path):
    """Draws what this one draws, from a saved pipeline; the other way round of `text_first` changes no bit."""
    pipelines.state.save_pretrained(tmp_path)
    order = Order(str(tmp_path), "seven", True, False, 64, 3, "cpu", "float32", threads=1)
    fresh, here = in_fresh_process(order), draw(replace(order, text_first=True))
    assert list(fresh.latents) == list(here.latents) and len(fresh.latents) == 64
    assert PEAK_OF_AN_IMPORT < fresh.imported < fresh.loaded < fresh.peak
    assert len(fresh.until_step) == 3 and 0 < fresh.until_step[0] < fresh.until_step[-1] < fresh.whole


def test_a_process_that_ends_early(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="the process ended with 1: no message"):
        in_fresh_process(Order("nowhere", "seven", True, False, 64, 3, "cpu", "float32", threads=1))


def test_a_process_that_fails_has_a_row_that_says_so(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the process ended with -9: no message")

    monkeypatch.setattr(pipeline_memory, "in_fresh_process", fail)
    monkeypatch.setattr(pipeline_memory, "QUICK_OPTIONS", [pipeline_memory.Option()])
    MemoryMeasurement(BenchmarkConfig(tmp_path, quick=True), progress=False).run()
    assert {row["not_run"] for row in rows_in(tmp_path).values()} == {
        "RuntimeError: the process ended with -9: no message"
    }
    assert "not run: RuntimeError: the process ended with -9" in pipeline_report.write_report(tmp_path)


def test_out_of_memory_has_a_row_that_says_so(measurement, pipelines, flops, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Measurement, "timed", fail)
    case = pipeline_benchmark.Case("dir7_tiny", STEP, 1, 64, 64, 10)
    rows = measurement.rows_of(case, pipelines, flops)
    assert [row["not_run"] for row in rows.values()] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"
    ] * 2
    assert all(row["flops"] > 0 for row in rows.values())
