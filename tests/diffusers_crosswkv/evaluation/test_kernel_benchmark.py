import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from crosswkv_kernels import wkv7_reference

from diffusers_crosswkv.evaluation import kernel_report, kernel_timing
from diffusers_crosswkv.evaluation.fla_convention import to_fla
from diffusers_crosswkv.evaluation.kernel_benchmark import Benchmark, BenchmarkConfig
from diffusers_crosswkv.evaluation.kernel_cases import CROSSWKV_LAYERS, Case, cases, relative_rms, scan_bytes
from diffusers_crosswkv.evaluation.kernel_timing import interleaved, peak_memory, summarize
from diffusers_crosswkv.evaluation.scan_sides import SCANS, make_inputs, scan_sides

CPU = torch.device("cpu")
SHORT = (Case("scan", "forward", 2, 192, 16),)


@pytest.fixture
def make_benchmark(tmp_path, monkeypatch):
    """A benchmark of scans of one short shape, whose clock gives what `milliseconds` says."""

    def make(chosen=SHORT, milliseconds=1.0, **options):
        monkeypatch.setattr("diffusers_crosswkv.evaluation.kernel_benchmark.cases", lambda *arguments: list(chosen))
        benchmark = Benchmark(BenchmarkConfig(tmp_path / "rows", kinds=("scan",), **{"repetitions": 3} | options))
        benchmark.bandwidth = 1e9

        def stopwatch(call):
            call()
            return milliseconds

        benchmark.stopwatch = stopwatch
        return benchmark

    return make


def rows_of(benchmark):
    return [json.loads(line) for line in benchmark.file.path.read_text(encoding="utf-8").splitlines()]


def test_minimal_bytes_per_token_and_head():
    assert scan_bytes(1, 1, 1, 64, 64, torch.bfloat16) == 896
    assert scan_bytes(1, 1, 1, 64, 64, torch.bfloat16, backward=True) == 2560
    assert scan_bytes(2, 77, 5, 64, 64, torch.float32) == 2 * 77 * 5 * 2 * 896
    assert scan_bytes(1, 1, 1, 16, 32, torch.float16) == 2 * (5 * 16 + 2 * 32)


def test_minimal_bytes_are_those_of_the_tensors():
    case = Case("scan", "forward+backward", 2, 192, 16)
    inputs = make_inputs(2, 16, 3, 64, torch.float32, CPU)
    once = sum(x.nbytes for x in inputs)
    assert scan_sides(case, CPU, torch.float32)["chunked"]().minimal_bytes == 3 * once + 2 * inputs[3].nbytes


def test_sides_take_turns():
    order = []
    times = iter([1.0, 10.0, 3.0, 30.0, 2.0, 20.0])

    def stopwatch(call):
        call()
        return next(times)

    calls = {name: lambda name=name: order.append(name) for name in "AB"}
    timings = interleaved(calls, stopwatch, repetitions=3, seconds=60)
    assert order == list("ABABAB")
    assert timings["A"] == (2.0, 1.5, 2.5, 3)
    assert timings["B"] == (20.0, 15.0, 25.0, 3)


def test_slow_calls_are_repeated_three_times():
    timings = interleaved({"A": lambda: None, "B": lambda: None}, lambda call: 1000.0, repetitions=20, seconds=0.2)
    assert timings["A"].repetitions == timings["B"].repetitions == kernel_timing.FEWEST_REPETITIONS


def test_one_repetition_has_no_spread():
    assert summarize([4.0]) == (4.0, 4.0, 4.0, 1)


def test_peak_memory_counts_what_is_held_at_once():
    def call():
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        return second + 1

    assert 8_000_000 <= peak_memory(call, CPU) < 8_100_000


def test_launches_count_each_tensor_argument_once(monkeypatch):
    jit = pytest.importorskip("triton.runtime.jit", reason="triton is not installed")
    started = []
    monkeypatch.setattr(jit.JITFunction, "run", lambda *arguments, **options: started.append(options))
    before = jit.JITFunction.run
    x, y = torch.zeros(10), torch.zeros(3, dtype=torch.float64)
    with kernel_timing.count_launches() as launches:
        jit.JITFunction.run(None, x, 7, grid=(1,), warmup=False, out=y)
        jit.JITFunction.run(None, x[:5], grid=(1,), warmup=False)
    assert (launches.count, launches.bytes) == (2, 40 + 24 + 20)
    assert len(started) == 2
    assert jit.JITFunction.run is before


def test_every_case_has_a_place_in_the_shapes_of_the_issue():
    scans = [case for case in cases("cuda") if case.kind == "scan"]
    assert {case.tokens for case in scans} == {16, 77, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536}
    assert {(case.batch, case.width) for case in scans} == {(b, d) for b in (2, 16) for d in (320, 640, 1280)}
    layers = {(case.width, case.tokens, case.text_tokens) for case in cases("cpu") if case.kind == "layer"}
    assert {(320, 4096, 77), (640, 1024, 512), (1280, 256, 2048), (320, 65536, 77), (320, 64, 2048)} <= layers
    assert len(cases("cuda")) == len(set(cases("cuda")))
    first = {device: cases(device)[0].kind for device in ("cpu", "cuda", "xpu")}
    assert first == {"cpu": "layer", "cuda": "scan", "xpu": "scan"}


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_errors_are_those_of_every_result(direction):
    case = Case("scan", direction, 2, 192, 20)
    sides = scan_sides(case, CPU, torch.float32)
    assert 0 < sides["chunked"]().error() <= 1e-5
    assert scan_sides(case, CPU, torch.float64)["naive loop"]().error() <= 1e-14


def test_flash_linear_attention_means_the_same():
    """Its naive implementation, which scales by `K ** -0.5` and takes `[B, H, T, K]`, against our reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive = pytest.importorskip("fla.ops.generalized_delta_rule.dplr.naive", reason="fla is not installed")
    inputs = make_inputs(2, 33, 3, 16, torch.float32, CPU)
    r, w, k, v, a, b = (x.transpose(1, 2) for x in to_fla(*inputs))
    o, state = naive.dplr_recurrence(r * 16**0.5, k, v, a, b, w)
    expected, expected_state = wkv7_reference(*inputs, output_final_state=True)
    assert relative_rms(o.transpose(1, 2), expected) <= 1e-5
    assert relative_rms(state.mT, expected_state) <= 1e-5


def test_measured_once_for_a_code_version(make_benchmark):
    assert make_benchmark().run(progress=False) == 1
    rows = rows_of(make_benchmark())
    assert make_benchmark().run(progress=False) == 0
    assert make_benchmark(repetitions=4).run(progress=False) == 1
    assert make_benchmark(again=True).run(progress=False) == 1
    changed = make_benchmark()
    changed.about["code"] = "another"
    assert changed.run(progress=False) == 1
    assert len(rows_of(changed)) == len(rows)


def test_calls_that_would_take_too_long_say_so(make_benchmark):
    chosen = [Case("scan", "forward", 2, 192, tokens) for tokens in (16, 32)]
    benchmark = make_benchmark(chosen, milliseconds=60.0, seconds=18.0)
    assert benchmark.run(progress=False) == 1
    reasons = {row["not_run"] for row in rows_of(benchmark) if row["tokens"] == 32}
    assert reasons == {"one call would take about 0.12 s, too long for a run of 18 s"}


def test_a_run_that_is_over_goes_on_with_the_next(make_benchmark):
    benchmark = make_benchmark(seconds=1e-9)
    assert benchmark.run(progress=False) == 0
    assert "call again to go on" in rows_of(benchmark)[-1]["not_run"]
    assert make_benchmark().run(progress=False) == 1


def test_too_large_shapes_are_not_made(make_benchmark, monkeypatch):
    monkeypatch.setattr("diffusers_crosswkv.evaluation.kernel_benchmark.free_memory", lambda: 2**20)
    benchmark = make_benchmark([Case("scan", "forward", 16, 1280, 65536)])
    assert benchmark.run(progress=False) == 0
    assert "GiB of memory" in rows_of(benchmark)[-1]["not_run"]


def test_memory_that_only_caches_files_is_free(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  9 kB\nMemFree:   1 kB\nMemAvailable:   7 kB\nCached:  6 kB\n", encoding="utf-8")
    monkeypatch.setattr(kernel_timing, "MEMORY_INFO", path)
    assert kernel_timing.free_memory() == 7 * 1024
    path.unlink()
    assert kernel_timing.free_memory() > 2**20


def test_a_side_that_fails_does_not_stop_the_others(make_benchmark, monkeypatch):
    def fail(*tensors):
        raise RuntimeError("out of registers\nand more")

    benchmark = make_benchmark()
    monkeypatch.setitem(SCANS, "chunked", SCANS["chunked"]._replace(run=fail))
    benchmark.run(progress=False)
    rows = {row["implementation"]: row for row in rows_of(benchmark) if row["tokens"]}
    assert rows["chunked"]["not_run"] == "RuntimeError: out of registers"
    assert "median_ms" in rows["naive loop"]


def test_a_side_that_takes_too_long_to_prepare_is_tried_again(make_benchmark, monkeypatch):
    def tune(*tensors):
        raise TimeoutError("not done; call again to go on")

    monkeypatch.setitem(SCANS, "chunked", SCANS["chunked"]._replace(run=tune))
    benchmark = make_benchmark()
    benchmark.run(progress=False)
    rows = {row["implementation"]: row for row in rows_of(benchmark) if row["tokens"]}
    assert rows["chunked"]["not_run"] == "not done; call again to go on"
    assert make_benchmark().known_rows(SHORT[0]) is None


def test_figures_of_the_kernels_readme_are_those_of_the_rows():
    root = Path(__file__).parents[3]
    (results,) = kernel_report.load(root / "benchmarks/kernels/cpu.jsonl").values()
    summary = [line for name in CROSSWKV_LAYERS for line in kernel_report.layer_summary(results, name).splitlines()]
    text = (root / "kernels/README.md").read_text(encoding="utf-8")
    figures = re.findall(r"^\| \d+ \| \d+ \| .*$", text, re.MULTILINE)
    assert len(figures) >= 8
    assert [line for line in figures if line not in summary] == []


def layer_row(implementation, width, tokens, milliseconds):
    place = {"device": "cpu", "processor": "made up", "threads": 1, "dtype": "float32", "cores": 2}
    shape = {"kind": "layer", "direction": "forward", "batch": 2, "width": width, "tokens": tokens, "text_tokens": 77}
    return place | shape | {"implementation": implementation, "median_ms": milliseconds}


def test_geometric_mean_over_the_three_shapes():
    shapes = ((320, 4096, 1.0), (640, 1024, 2.0), (1280, 256, 4.0))
    rows = [layer_row("softmax", d, t, 6.0) for d, t, _ in shapes]
    rows += [layer_row("crosswkv", d, t, 6.0 / ratio) for d, t, ratio in shapes]
    assert "| 2 | 77 | 1.00 | 2.00 | 4.00 | **2.00** |" in kernel_report.layer_summary(kernel_report.Results(rows))
    assert kernel_report.layer_summary(kernel_report.Results(rows[:-1])) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "`device` must be one of cpu, cuda, xpu, got 'tpu'."),
        ({"dtype": "int8"}, "`dtype` must be one of float32, bfloat16, float16, got 'int8'."),
        ({"kinds": ()}, r"`kinds` must be of layer, text, attention, scan, got \[\]."),
        ({"repetitions": 0}, "`repetitions` must be at least 1, got 0."),
        ({"seconds": -1.0}, "`seconds` must be positive, got -1.0."),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkConfig(tmp_path, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"`device` must be one that torch .* can use here"):
        BenchmarkConfig(tmp_path, "cuda")


def test_no_rows_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no rows in"):
        kernel_report.write_report(tmp_path)
