import dataclasses
import json

import numpy as np
import pytest
import torch

from diffusers_crosswkv.alignment.arms import MAIN_ARMS, build
from diffusers_crosswkv.alignment.drawing import draw
from diffusers_crosswkv.alignment.runs import (
    EVALUATIONS,
    as_columns,
    cut_sheet,
    measure_controls,
    number_of_pictures,
    save_sheet,
    write_json,
)
from diffusers_crosswkv.alignment.suite import SMALL, SMOKE, claim, folder_of, run_job
from diffusers_crosswkv.alignment.text_encoder import untrained_text_encoder
from diffusers_crosswkv.data.scene_splits import TRAINING, Scenes


def test_columns_have_one_entry_per_picture():
    scenes = Scenes(16, TRAINING)
    descriptions, seen = [scenes.description(i) for i in range(20)], [scenes.scene(i) for i in range(20)]
    columns = as_columns(descriptions, seen)
    shuffled = columns.pop("shuffled")
    assert {len(column) for column in columns.values()} == {20}
    assert columns["everything"] == [1] * 20
    assert sum(shuffled["everything"]) < 5
    assert [relation is None for relation in columns["relation"]] == [x.relation is None for x in descriptions]


def test_controls():
    rows = measure_controls(dataclasses.replace(SMALL, pictures=30, pictures_same=60))
    for row in rows:
        right = np.mean(row["everything"])
        assert right == 1 if row["arm"] == "real renders" else right < 0.2, row["evaluation"]


def test_sheet(tmp_path):
    pictures = torch.rand(11, 3, 16, 16) * 2 - 1
    save_sheet(pictures, tmp_path / "sheet.png")
    for i, picture in zip((0, 7, 8, 10), cut_sheet(tmp_path / "sheet.png", 16, [0, 7, 8, 10]), strict=True):
        small = np.array(picture.resize((16, 16), 0)) / 127.5 - 1
        np.testing.assert_allclose(small, pictures[i].permute(1, 2, 0), atol=0.005)


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a/b.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a/b.json", {"x": object()})
    assert json.loads((tmp_path / "a/b.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("arm", ["softmax", "paper"])
def test_a_job_leaves_a_row_per_evaluation_and_is_done_once(tmp_path, arm):
    run_job("smoke", tmp_path, arm, 0, progress=False)
    rows = folder_of(tmp_path, arm, 0) / "rows"
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in rows.glob("*.json")}
    alignment = {row["evaluation"]: row for row in found.values() if row["kind"] == "alignment"}
    assert set(alignment) == set(EVALUATIONS)
    assert all(len(row["everything"]) == number_of_pictures(SMOKE, name) for name, row in alignment.items())
    times = {path: path.stat().st_mtime_ns for path in found}
    run_job("smoke", tmp_path, arm, 0, progress=False)
    assert times == {path: path.stat().st_mtime_ns for path in found}


def test_a_folder_of_another_setup_is_refused(tmp_path):
    claim(tmp_path, {"name": "state", "steps": (1, 2)})
    claim(tmp_path, {"name": "state", "steps": (1, 2)})
    with pytest.raises(ValueError, match="holds a training with another setup"):
        claim(tmp_path, {"name": "state", "steps": (1, 3)})


def test_a_model_that_reads_no_text_gets_none():
    models = build(MAIN_ARMS["no text"], SMOKE, 0, untrained_text_encoder(SMOKE))
    one, other = (draw(models, [text] * 2, SMOKE, 0, reads_text=False) for text in ("red ring", "blue square"))
    assert torch.equal(one, other)
    assert not torch.equal(draw(models, ["red ring"] * 2, SMOKE, 0), one)


def test_an_interrupted_measurement_goes_on(tmp_path):
    run_job("smoke", tmp_path, "state", 0, progress=False)
    rows = folder_of(tmp_path, "state", 0) / "rows"
    kept, lost = rows / "pairs.json", rows / "order.json"
    before, time = json.loads(lost.read_text(encoding="utf-8")), kept.stat().st_mtime_ns
    lost.unlink()
    (rows / "training.json").unlink()
    run_job("smoke", tmp_path, "state", 0, progress=False)
    after = json.loads(lost.read_text(encoding="utf-8"))
    assert before | {"drawing_seconds": 0} == after | {"drawing_seconds": 0}
    assert kept.stat().st_mtime_ns == time
