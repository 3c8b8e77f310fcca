import dataclasses
import json

import pytest

from diffusers_crosswkv.files import read_json_lines
from diffusers_crosswkv.state_tracking import suite
from diffusers_crosswkv.state_tracking.cells import QUICK, Cell
from diffusers_crosswkv.state_tracking.report import fewest, percent, write_report
from diffusers_crosswkv.state_tracking.suite import cells_of, put, run_suite

PARITY = cells_of(tasks=["parity"], arms=["softmax"], layers=[1])


def quick(cell):
    return QUICK


def row_of(cell, setup=QUICK, **figures):
    accuracy = dict.fromkeys(("16", "256"), 1.0)
    about = {"date": "2026-01-01", "commit": "abc", "processor": "a CPU", "cores": 2, "threads": 1, "torch": "2"}
    row = dataclasses.asdict(cell) | {"setup": dataclasses.asdict(setup), "accuracy": accuracy, "last": accuracy}
    return row | about | {"parameters": 1000, "seconds": 60.0} | figures


def test_suite_is_every_combination_once():
    cells = cells_of()
    assert len(cells) == len(set(cells)) == 333
    once = {cell.task for cell in cells} - {cell.task for cell in cells if "updates" in cell.arm}
    assert once == {"s5_swaps", "parity", "even_pairs"}
    assert [cell.seed for cell in PARITY] == [0, 1, 2]


def test_an_interrupted_suite_goes_on(monkeypatch, tmp_path):
    ran = []

    def interrupted(cell, setup):
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(cell)
        return row_of(cell, setup)

    monkeypatch.setattr(suite, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_suite(tmp_path / "rows.jsonl", PARITY, setup_of=quick)
    assert len(read_json_lines(tmp_path / "rows.jsonl")) == 1
    monkeypatch.setattr(suite, "run_cell", lambda cell, setup: ran.append(cell) or row_of(cell, setup))
    assert len(run_suite(tmp_path / "rows.jsonl", PARITY, setup_of=quick)) == 3
    assert ran == PARITY


def test_another_setup_runs_again_and_takes_the_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    for cell in PARITY:
        put(path, row_of(cell))
    other = dataclasses.replace(QUICK, steps=3)
    rows = run_suite(path, PARITY[1:2], setup_of=lambda _: other)
    assert len(rows) == 3
    assert [row["setup"]["steps"] for row in rows if row["seed"] == 1] == [3]


@pytest.mark.full  # two processes that import torch
def test_two_at_a_time_make_the_same_rows(tmp_path):
    cells = PARITY[:2]
    alone, together = (run_suite(tmp_path / f"{jobs}.jsonl", cells, jobs, quick) for jobs in (1, 2))
    figures = [{row["seed"]: (row["loss"], row["accuracy"]) for row in rows} for rows in (alone, together)]
    assert figures[0] == figures[1]


def test_page_is_made_of_rows(tmp_path):
    rows = [row_of(cell, accuracy={"16": 1.0, "256": 0.98 + 0.01 * cell.seed}) for cell in PARITY]
    rows.append(row_of(Cell("s5_swaps", "wkv7, rate to 2", 1, 0), mean_rate=[[1.25, 1.5]], mean_decay=[[0.5, 0.75]]))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = write_report(tmp_path)
    assert page == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| parity | softmax | 1 | 1 | none of them |" in page
    assert "| S5, its 10 swaps | wkv7, rate to 2 | 1 | 1 | 1 |" in page
    assert "| 98.00 / 99.00 / 100 | 100 / 100 / 100 | 1,000 | 1.0 |" in page
    assert "| wkv7, rate to 2 | 0 | 1.2500, 1.5000 | 0.5000, 0.7500 |" in page
    assert "329 of 333 trainings have no row" in page
    assert "- parity, 1 layer, seeds 0, 1, 2: wkv7, rate to 2; wkv7, rate to 1; diagonal" in page


def test_fewest_layers_counts_the_worst_seed():
    def rows(*shares):
        return [{"accuracy": {"256": share}} for share in shares]

    assert fewest({1: rows(1.0, 0.98), 2: rows(0.99, 1.0), 4: rows(1.0)}, 256) == "2"
    assert fewest({1: rows(0.5)}, 256) == "none of them"
    assert (percent(1), percent(0.99999), percent(0.5)) == ("100", "99.99", "50.00")
