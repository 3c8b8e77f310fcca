import json
from pathlib import Path

import pytest
from running import run_script

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit status and what was printed; trainings are processes of their own."""

    def command(script, *arguments):
        status = run_script(monkeypatch, SCRIPTS / script, *arguments)
        return status, capsys.readouterr().out

    return command


def test_alignment_runs_and_reports(run, tmp_path):
    arguments = ("--preset", "smoke", "--output-dir", tmp_path / "runs", "--report-dir", tmp_path / "report")
    status, printed = run("run_alignment.py", *arguments, "--arms", "state", "recall, state 16", "--jobs", 2)
    assert status == 0
    assert "| state |" in printed
    assert (tmp_path / "report/pictures-state.png").exists()
    assert "state, 16 x 16" in (tmp_path / "report/tables.md").read_text(encoding="utf-8")
    assert run("run_alignment.py", *arguments, "--report-only") == (0, printed)


def test_alignment_says_what_is_wrong(run, tmp_path):
    arguments = ("--preset", "smoke", "--output-dir", tmp_path)
    assert run("run_alignment.py", *arguments, "--seeds", 5)[0].startswith("error: `seeds` must be of (0,), got [5]")
    assert run("run_alignment.py", *arguments, "--report-only")[0].startswith("error: There are no rows")


def test_judge(run, tmp_path):
    arguments = ("--resolutions", 16, "--count", 20, "--steps", 3, "--rows", tmp_path / "rows.jsonl")
    status, printed = run("measure_judge.py", *arguments)
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (rows[0]["resolution"], rows[0]["blur"], rows[0]["judge"]) == (16, 0, 1)
    assert len(printed.splitlines()) == 1 + len(rows)
