import json
from pathlib import Path

import pytest
from PIL import Image
from running import run_script

from diffusers_crosswkv.othello import legality, lessons

SCRIPT = Path(__file__).parents[2] / "scripts/othello.py"
KINDS = {"training", "legality", "floor", "board", "probe", "match"}


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(lessons, "GAMES_AT_ONCE", 16)
    monkeypatch.setattr(legality, "GAMES_OF_CHANCE", 64)

    def call(*arguments):
        return run_script(monkeypatch, SCRIPT, "--preset", "smoke", *arguments), capsys.readouterr().out

    return call


def test_othello_trains_measures_and_reports(run, tmp_path):
    folder = ("--output-dir", tmp_path)
    code, page = run(*folder, "--device", "cpu")
    assert code == 0
    report = tmp_path / "smoke/report"
    rows = [json.loads(line) for line in (report / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["kind"] for row in rows} == KINDS
    assert all(row.keys() >= {"date", "commit", "device", "processor", "torch"} for row in rows)
    assert_page(page, report, rows)
    weights = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(weights) == 2 * 4  # model and optimizer
    assert run(*folder, "--device", "cpu")[1] == page
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == weights
    assert run(*folder, "--report-only")[1] == page


def assert_page(page, report, rows):
    assert page.strip() == (report / "README.md").read_text(encoding="utf-8").strip()
    (legal,) = (row for row in rows if row["kind"] == "legality" and row.get("mixer") == "wkv7")
    assert f"| WKV-7, `legal` | {100 * legal['share'][0]:.1f} % (" in page
    matches = [row for row in rows if row["kind"] == "match"]
    assert all(row["wins"] + row["draws"] + row["losses"] == row["games"] == 6 for row in matches)
    assert [row["player"] for row in matches][:3] == ["random", "greedy", "cautious"]
    assert {row["opponent"] for row in matches} == {"random"}
    assert "--mixers softmax --lessons next" in page  # not run
    for name in ("legal.png", "boards.png", "probes.png"):
        assert f"]({name})" in page
        with Image.open(report / name) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 10


def test_othello_says_what_is_missing(run, tmp_path):
    folder = ("--output-dir", tmp_path, "--device", "cpu")
    code, _ = run(*folder, "--lessons", "play", "--mixers", "softmax")
    assert code.startswith("error: `play` goes on from a finished training of `legal`, but ")
    code, _ = run("--output-dir", tmp_path / "none", "--report-only")
    assert code.startswith("error: There are no rows")
