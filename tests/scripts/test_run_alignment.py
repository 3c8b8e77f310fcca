import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_alignment_runs_and_reports(tmp_path):
    arguments = ("--preset", "smoke", "--output-dir", tmp_path / "runs", "--report-dir", tmp_path / "report")
    done = run("run_alignment.py", *arguments, "--arms", "state", "recall, state 16", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "| state |" in done.stdout
    assert (tmp_path / "report/pictures-state.png").exists()
    assert "state, 16 x 16" in (tmp_path / "report/tables.md").read_text(encoding="utf-8")
    again = run("run_alignment.py", *arguments, "--report-only")
    assert again.stdout == done.stdout


def test_alignment_says_what_is_wrong(tmp_path):
    done = run("run_alignment.py", "--preset", "smoke", "--output-dir", tmp_path, "--seeds", 5)
    assert done.returncode == 1
    assert "error: `seeds` must be of (0,), got [5]" in done.stderr
    done = run("run_alignment.py", "--preset", "smoke", "--output-dir", tmp_path, "--report-only")
    assert "error: There are no rows" in done.stderr


def test_judge(tmp_path):
    done = run("measure_judge.py", "--resolutions", 16, "--count", 20, "--steps", 3, "--rows", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (rows[0]["resolution"], rows[0]["blur"], rows[0]["judge"]) == (16, 0, 1)
    assert len(done.stdout.splitlines()) == 1 + len(rows)
