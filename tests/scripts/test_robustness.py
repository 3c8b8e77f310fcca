"""The whole command, as small as it gets."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "scripts/robustness.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_arm_and_its_report(tmp_path):
    arguments = ("--preset", "smoke", "--output-dir", tmp_path / "runs", "--report-dir", tmp_path / "report")
    done = run(*arguments, "--arms", "prefix")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "report/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["kind"] for row in rows) == ["lengths", *["prompts"] * 4, "sampling", "training"]
    (training,) = [row for row in rows if row["kind"] == "training"]
    assert [look["step"] for look in training["looks"]] == [0, 1, 2]
    assert "| as in training |" in done.stdout
    assert "**not run**: state, softmax, paper." in done.stdout
    for name in ("prompts", "states_training", "states_sampling", "states_lengths"):
        assert (tmp_path / f"report/{name}.png").stat().st_size > 5000
    again = run(*arguments, "--report-only")
    assert again.stdout == done.stdout


def test_nothing_to_report(tmp_path):
    done = run("--preset", "smoke", "--output-dir", tmp_path, "--report-only")
    assert done.returncode == 1
    assert "error: There are no rows in" in done.stderr
