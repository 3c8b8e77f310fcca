import json
import re
from pathlib import Path

import pytest
from PIL import Image
from running import run_script

from diffusers_crosswkv.evaluation import prompt_length, prompt_length_report

SCRIPT = Path(__file__).parents[2] / "scripts/benchmark_prompt_length.py"
SIDES = {prompt_length.SOFTMAX, prompt_length.READ, prompt_length.SCAN, prompt_length.ENCODE}


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        return run_script(monkeypatch, SCRIPT, *arguments), capsys.readouterr().out

    return call


def test_quick_benchmark(run, tmp_path):
    arguments = ("--device", "cpu", "--quick", "--repetitions", 3, "--threads", 1, "--output-dir", tmp_path)
    code, printed = run(*arguments)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text(encoding="utf-8").splitlines()]
    by_place = {(row["text_tokens"], row["implementation"]): row for row in rows}
    assert by_place.keys() == {(length, side) for length in prompt_length.QUICK_LENGTHS for side in SIDES}
    for row in rows:
        assert row.keys() >= {
            "date",
            "commit",
            "code",
            "device",
            "processor",
            "threads",
            "torch",
            "diffusers",
            "dtype",
        }
        assert 0 < row["q25_ms"] <= row["median_ms"] <= row["q75_ms"]
        assert row["repetitions"] == 3
        assert row["peak_bytes"] > 0
    read = [by_place[length, prompt_length.READ] for length in prompt_length.QUICK_LENGTHS]
    softmax = [by_place[length, prompt_length.SOFTMAX] for length in prompt_length.QUICK_LENGTHS]
    assert read[0]["prompt_bytes"] == read[1]["prompt_bytes"]
    assert read[0]["peak_bytes"] == read[1]["peak_bytes"]
    assert softmax[1]["prompt_bytes"] == 16 * softmax[0]["prompt_bytes"]
    assert (
        softmax[0]["prompt_bytes"] == 2 * 16 * (2 * 7 * 32) * 4
    )  # batch, tokens, keys and values of 7 layers, float32
    assert max(row["error"] for row in read) < 1e-5
    assert_reported(printed, tmp_path, by_place)


def assert_reported(printed, folder, by_place):
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert printed.endswith(page + "\n")
    for length in prompt_length.QUICK_LENGTHS:
        cells = re.search(rf"^\| {length} \| (.*) \|$", page, re.MULTILINE).group(1).split(" | ")
        softmax, read = (by_place[length, side]["median_ms"] for side in (prompt_length.SOFTMAX, prompt_length.READ))
        assert cells[0].startswith(f"{softmax:.4g} (")
        assert cells[1].startswith(f"{read:.4g} (")
        assert cells[2] == f"{softmax / read:.2f}"
    (picture,) = folder.glob("*.png")
    assert f"]({picture.name})" in page
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.parametrize(
    ("softmax", "steps"), [(12.0, "50"), (12.1, "48"), (11.0, "100"), (10.0, "never"), (9.0, "never")]
)
def test_steps_to_repay(softmax, steps):
    times = {prompt_length.SOFTMAX: softmax, prompt_length.READ: 10.0, prompt_length.ENCODE: 100.0}
    assert prompt_length_report.steps_to_repay({side: {"median_ms": time} for side, time in times.items()}) == steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "error: `device` must be one of cpu, cuda, xpu, got 'tpu'."),
        (("--device", "cpu", "--threads", 0), "error: `--threads` must be at least 1, got 0"),
    ],
)
def test_bad_arguments(run, tmp_path, arguments, message):
    code, _ = run(*arguments, "--output-dir", tmp_path / "rows")
    assert code == message
    assert not (tmp_path / "rows").exists()


def test_no_rows_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no rows in"):
        prompt_length_report.write_report(tmp_path)
