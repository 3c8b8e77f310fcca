import json
from pathlib import Path

import pytest
from PIL import Image
from running import run_script

SCRIPT = Path(__file__).parents[2] / "scripts/state_tracking.py"
SOME = ("--quick", "--tasks", "s5_swaps", "parity", "--layers", 1, "--seeds", 0, 2)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        return run_script(monkeypatch, SCRIPT, *arguments), capsys.readouterr().out

    return call


def test_rows_page_and_plot(run, tmp_path):
    code, printed = run(*SOME, "--output-dir", tmp_path)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["task"], row["seed"]) for row in rows} == {(t, s) for t in ("s5_swaps", "parity") for s in (0, 2)}
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        assert row.keys() >= {"date", "commit", "device", "processor", "threads", "torch", "setup", "loss", "seconds"}
        assert list(row["accuracy"]) == list(row["last"]) == ["4", "8", "16", "32"]
        assert 0 <= row["accuracy"]["32"] < 1
        assert ("mean_rate" in row) == (row["arm"] != "softmax")
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert printed == page + "\n"
    swaps = next(row for row in rows if row["task"] == "s5_swaps" and row["arm"] == "softmax" and row["seed"] == 2)
    assert f"{100 * swaps['accuracy']['32']:.2f}" in page
    assert "317 of 333 trainings have no row" in page
    assert "- S5, its 10 swaps, 1 layer, seed 1: wkv7, rate to 2; wkv7, rate to 1; diagonal; softmax" in page
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.width > 500


def test_what_has_a_row_is_not_run_again(run, tmp_path):
    some = ("--quick", "--tasks", "parity", "--arms", "softmax", "--layers", 1, "--output-dir", tmp_path)
    assert run(*some, "--seeds", 0)[0] == 0
    first = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert run(*some, "--seeds", 0, 1)[0] == 0
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert rows.startswith(first)
    assert len(rows.splitlines()) == 2
    assert run("--report-only", "--output-dir", tmp_path)[0] == 0
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == rows


def test_errors_name_the_fix(run, tmp_path):
    assert "there are none" in run("--report-only", "--output-dir", tmp_path)[0]
    assert "`jobs` must be at least 1, got 0" in run(*SOME, "--jobs", 0, "--output-dir", tmp_path)[0]
