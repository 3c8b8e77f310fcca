import json
from pathlib import Path

import pytest

from diffusers_crosswkv.alignment.report import Results, language_table, length_means, search_page, write_report
from diffusers_crosswkv.alignment.runs import write_json
from diffusers_crosswkv.alignment.suite import folder_of
from diffusers_crosswkv.alignment.tables import percent
from diffusers_crosswkv.evaluation.alignment import METRICS, Mean
from diffusers_crosswkv.evaluation.tables import markdown


def row(arm="state", seed=0, evaluation="same", **columns):
    count = 4
    empty = {name: [None] * count for name in METRICS}
    about = {
        "kind": "alignment",
        "arm": arm,
        "seed": seed,
        "evaluation": evaluation,
        "language": ["English", "English", "French", "Chinese"],
        "length": ["short", "medium", "medium", "medium"],
        "bound_by_row": [[[0, 1], [1, 0]], [[0, 1]], [], []],
        "shuffled": {"binding": [0] * count, "everything": [0, 0, 0, 1]},
    }
    return about | empty | columns


RESULTS = Results(
    [
        row(everything=[1, 1, 0, 0], binding=[1, 0.5, 0, 1], relation=[None, 1, None, 0]),
        row(seed=1, everything=[1, 1, 1, 0], binding=[1, 1, 1, 1], relation=[None, 1, None, 1]),
        row(arm="softmax", everything=[0, 0, 0, 0]),
    ]
)


def test_means_are_over_pictures_and_seeds():
    assert RESULTS.mean("state", "same").mean == 5 / 8
    assert RESULTS.mean("state", "same", seeds=(1,)).mean == 3 / 4
    assert RESULTS.mean("state", "same", "relation").count == 4
    assert RESULTS.mean("state", "same", "shuffled everything").mean == 1 / 4
    assert RESULTS.mean("softmax", "same").mean == 0
    assert RESULTS.mean("paper", "same") is None


def test_lead_is_paired_by_caption_and_seed():
    lead = RESULTS.lead("state", "softmax", "same", "everything")  # seed 0 alone is on both sides
    assert (lead.mean, lead.count) == (0.5, 4)
    assert RESULTS.lead("prefix", "softmax", "same", "everything") is None
    long = [
        row(arm, 0, f"long, {place}", everything=[value] * 4)
        for arm, values in (("state", (1, 1, 0)), ("softmax", (0, 0, 0)))
        for place, value in zip(("early", "middle", "late"), values, strict=True)
    ]
    assert Results(long).lead("state", "softmax", "long", "everything").mean == pytest.approx(2 / 3)
    assert Results(long[:5]).lead("state", "softmax", "long", "everything") is None


def test_by_row_language_and_length():
    assert (RESULTS.by_image_row("state", 0).mean, RESULTS.by_image_row("state", 1).mean) == (1, 0)
    assert RESULTS.by_image_row("state", 2) is None
    assert length_means(RESULTS, "state")["short"].mean == 1
    assert length_means(RESULTS, "state")["medium"].mean == 4.5 / 6
    assert length_means(RESULTS, "state")["long"] is None
    line = next(line for line in language_table(RESULTS).splitlines() if line.startswith("| state "))
    assert [cell.split(" (")[0].strip() for cell in line.strip("|").split("|")] == [
        "state",
        "87.5",
        "100.0",
        "not run",
        "50.0",
    ]


def test_cells():
    assert percent(Mean(0.6123, 0.5, 0.7251, 9)) == "61.2 (50.0 to 72.5)"
    assert percent(Mean(0.6123, 0.5, 0.7, 9), interval=False) == "61.2"
    assert percent(None) == "not run"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_report_names_what_was_not_run(tmp_path):
    training = {"arm": "state", "seed": 0, "parameters": 5, "trained_parameters": 4, "steps": 2, "batch_size": 4}
    write_json(
        folder_of(tmp_path / "runs", "state", 0) / "rows/training.json",
        {"kind": "training", "seconds": 1.0, "date": "2000-01-01", "torch": "2"} | training,
    )
    write_json(
        folder_of(tmp_path / "runs", "state", 0) / "rows/same.json", row(everything=[1, 0, 0, 0], binding=[1, 0, 0, 0])
    )
    write_json(
        folder_of(tmp_path / "runs", "recall, state", 0) / "rows/training.json",
        [
            {"kind": "recall", "layer": "state", "head_dim": 64, "facts": n, "accuracy": 0.5, "chance": 0.1}
            for n in (4, 8)
        ],
    )
    summary = write_report("smoke", tmp_path / "runs", tmp_path / "report")
    assert "| state |" in summary
    page = (tmp_path / "report/tables.md").read_text(encoding="utf-8")
    assert "1 of 19 trainings" in page
    assert "Not run: softmax (seed 0), prefix (seed 0)" in page
    assert "| state, 64 x 64 | 50.0 | 50.0 |" in page
    rows = [json.loads(line) for line in (tmp_path / "report/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {r["kind"] for r in rows} == {"training", "alignment", "recall"}
    for name in ("splits", "lengths", "image_rows", "capacity"):
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 5000


def test_every_step_of_the_search_is_on_its_page():
    path = Path(__file__).parents[3] / "benchmarks/alignment/search.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    page = search_page(rows)
    assert (
        sum(line.startswith("| ") for line in page.splitlines()) == len(rows) + 2 * 6
    )  # tables, with two lines of header


def test_no_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rows"):
        write_report("smoke", tmp_path, tmp_path / "report")
