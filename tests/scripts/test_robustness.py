"""The whole command, as small as it gets."""

import json
from pathlib import Path

from running import run_script

SCRIPT = Path(__file__).parents[2] / "scripts/robustness.py"


def test_one_arm_and_its_report(monkeypatch, capsys, tmp_path):
    arguments = ("--preset", "smoke", "--output-dir", tmp_path / "runs", "--report-dir", tmp_path / "report")
    assert run_script(monkeypatch, SCRIPT, *arguments, "--arms", "prefix") == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "report/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["kind"] for row in rows) == ["lengths", *["prompts"] * 4, "sampling", "training"]
    (training,) = [row for row in rows if row["kind"] == "training"]
    assert [look["step"] for look in training["looks"]] == [0, 1, 2]
    assert "| as in training |" in printed
    assert "**not run**: state, softmax, paper." in printed
    for name in ("prompts", "states_training", "states_sampling", "states_lengths"):
        assert (tmp_path / f"report/{name}.png").stat().st_size > 5000
    assert run_script(monkeypatch, SCRIPT, *arguments, "--report-only") == 0
    assert capsys.readouterr().out == printed


def test_nothing_to_report(monkeypatch, tmp_path):
    status = run_script(monkeypatch, SCRIPT, "--preset", "smoke", "--output-dir", tmp_path, "--report-only")
    assert status.startswith("error: There are no rows in")
