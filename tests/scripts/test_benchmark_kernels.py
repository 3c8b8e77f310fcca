import json
from pathlib import Path

import pytest
from PIL import Image
from running import run_script

SCRIPT = Path(__file__).parents[2] / "scripts/benchmark_kernels.py"
KEYS = {
    *("date", "commit", "code", "device", "processor", "cores", "threads", "torch", "triton", "diffusers", "fla"),
    *("kind", "direction", "batch", "width", "tokens", "text_tokens", "dtype", "implementation"),
}
MEASURED_KEYS = {
    *("median_ms", "q25_ms", "q75_ms", "repetitions", "first_call_ms", "peak_bytes", "peak_bytes_by"),
    *("minimal_bytes", "copy_bytes_per_second", "bandwidth_share"),
}
SIDES = {
    "layer": {"softmax", "crosswkv", "crosswkv, identity"},
    "attention": {"sdpa", "state readout"},
    "text": {"projections", "scan"},
}


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        return run_script(monkeypatch, SCRIPT, *arguments), capsys.readouterr().out

    return call


def test_quick_benchmark(run, tmp_path):
    arguments = ("--device", "cpu", "--quick", "--repetitions", 2, "--threads", 1, "--output-dir", tmp_path)
    code, printed = run(*arguments)
    assert code == 0
    rows = read(tmp_path / "cpu.jsonl")
    measured = [row for row in rows if "median_ms" in row]
    assert all(row.keys() >= KEYS for row in rows)
    assert all(row.keys() >= MEASURED_KEYS for row in measured)
    assert all(row["q25_ms"] <= row["median_ms"] <= row["q75_ms"] and row["peak_bytes"] > 0 for row in measured)
    assert all(row["error"] <= 1e-5 for row in measured if "error" in row)
    for kind, sides in SIDES.items():
        assert_in_every_case([row for row in measured if row["kind"] == kind], sides)
    assert_in_every_case([row for row in measured if row["kind"] == "scan"], {"chunked", "naive loop"})
    assert {row["implementation"] for row in rows if "not_run" in row} >= {"fla chunk", "fla recurrent"}
    assert_reported(printed, tmp_path)

    code, printed = run(*arguments)
    assert code == 0
    assert "\n0 cases measured now" in printed
    assert read(tmp_path / "cpu.jsonl") == rows


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_in_every_case(rows, sides):
    names = ("direction", "batch", "width", "tokens", "text_tokens")
    found = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), set()).add(row["implementation"])
    assert found
    assert all(of >= sides for of in found.values())


def assert_reported(printed, folder):
    assert "| layer | 2 | 320 | 4096 | 77 | crosswkv |" in printed
    assert " x as fast as softmax | " in printed
    assert "| scan |  |  |  |  | fla chunk | not run (any shape): flash-linear-attention" in printed
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "geometric mean" in page
    assert "- cuda: **not run**, there was none. Command: `make gpu-bench`." in page
    pictures = sorted(folder.glob("*.png"))
    assert [path.name.rsplit("threads-")[-1] for path in pictures] == [
        "image-tokens.png",
        "prompt-length.png",
        "scan.png",
    ]
    for path in pictures:
        assert f"]({path.name})" in page
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "error: `device` must be one of cpu, cuda, xpu, got 'tpu'."),
        (("--device", "cpu", "--repetitions", 0), "error: `repetitions` must be at least 1, got 0."),
        (("--device", "cpu", "--threads", 0), "error: `--threads` must be at least 1, got 0"),
    ],
)
def test_bad_arguments(run, tmp_path, arguments, message):
    code, _ = run(*arguments, "--output-dir", tmp_path / "rows")
    assert code == message
    assert not (tmp_path / "rows").exists()
