"""A dry run says what a training would take, and leaves nothing."""

from pathlib import Path

import pytest

from diffusers_crosswkv.finetuning import try_out
from diffusers_crosswkv.finetuning.dry_run import newest_checkpoint_size, size


def try_it(settings):
    return try_out(settings, progress=False)


def test_everything_is_told_and_nothing_is_left(make_settings, image_folder, tmp_path):
    Path(image_folder, "03.txt").write_text("a very long caption " * 40)
    settings = make_settings(
        data=image_folder, from_scratch="dir7_tiny", resolution=32, max_train_steps=1000, validation_examples=2,
        report_to=("none",), cache_dir=str(tmp_path / "caches"),
    )  # fmt: skip
    before = sorted(tmp_path.iterdir())
    found = try_it(settings)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "caches"] == before
    text = str(found)
    for part in (
        "starting from untrained weights",
        "10 images, 32 x 32 pixels",
        "2 more are held out",
        "left out: 1 has no caption",
        "10 are smaller than that and will be enlarged",
        "10.0% are longer than the text encoder's window of 77: read in several windows, nothing is cut off",
        "M of them are trained",
        "highest in a step",
        "images/s, loss",
        "1,000 steps, 400 epochs: about",
        "a checkpoint has",
        f"{tmp_path / 'run'} is free",
        "All is well; nothing was kept.",
    ):
        assert part in text
    assert not found.problems


def test_no_room_for_checkpoints(make_settings, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    found = try_it(make_settings(report_to=("none",)))
    assert "and 1 kB are free: free some space" in found.problems[0]
    assert str(found).endswith("Nothing was kept.")


def test_an_output_folder_of_somebody_else(make_settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        try_it(make_settings(report_to=("none",)))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_processes_without_checkpoints(tmp_path):
    assert newest_checkpoint_size(tmp_path / "run/checkpoints") == 0


def test_sizes_for_people():
    assert [size(n) for n in (7, 1500, 2_340_000, 5e9, 3e13)] == ["7 B", "1.5 kB", "2.34 MB", "5 GB", "30 TB"]
