"""The script that runs Diffusers' own tests."""

import runpy
import sys
from pathlib import Path

import pytest

from diffusers_crosswkv.evaluation import diffusers_tests
from diffusers_crosswkv.evaluation.diffusers_tests import FileResult

SCRIPT = Path(__file__).parents[2] / "scripts/run_diffusers_tests.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return stopped.value.code


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("failed", 1)])
def test_an_unexplained_failure_fails_the_command(tmp_path, monkeypatch, capsys, outcome, code):
    asked = []

    def compare_all(checkout, folder, files):
        asked.append((checkout, folder, files))
        return [FileResult(files[0], {"test": "passed"}, {"test": outcome}, {"test": ""})]

    monkeypatch.setattr(diffusers_tests, "compare_all", compare_all)
    assert run(monkeypatch, tmp_path, "--only", "models_auto", "--output-dir", tmp_path / "out") == code
    assert asked == [(tmp_path, tmp_path / "out", ["tests/models/test_models_auto.py"])]
    assert capsys.readouterr().out.startswith(f"{code} tests pass with the stock class and fail with ours")


def test_a_folder_that_is_no_checkout(tmp_path, monkeypatch):
    message = run(monkeypatch, tmp_path, "--output-dir", tmp_path / "out")
    assert message.startswith("error: ")
    assert "must be a checkout of Diffusers' repository" in message
