"""The quickstart end to end, in a small setting: the same script, fewer steps and images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts/quickstart.py"


def quickstart(folder, *arguments):
    command = [sys.executable, SCRIPT, "--output-dir", folder, "--num-images", "40", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_train_stop_go_on_save_load_draw(tmp_path):
    folder = tmp_path / "run"
    done = quickstart(folder, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "training: 100%" in done.stderr
    assert "loss=" in done.stderr
    assert {p.name for p in folder.iterdir()} >= {"pipeline", "checkpoints", "digits.png", "report.json", "facts.json"}
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["steps"], facts["batch_size"], facts["base_model"]) == (3, 32, "from scratch")
    assert {p.name for p in (folder / "pipeline").iterdir()} == {
        "model_index.json",
        "pipeline.py",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
    }
    for language in ("English", "Chinese", "Spanish", "French"):
        assert language in done.stdout
    assert "of held-out real digits right" in done.stdout
    assert str(folder / "digits.png") in done.stdout
    with Image.open(folder / "digits.png") as picture:
        assert picture.size == (796, 314)
    report = json.loads((folder / "report.json").read_text())
    assert report["agreement"]["count"] == 40
    again = quickstart(folder, "--steps", "3")
    assert "going on from step 3" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "`max_train_steps` must be at least 1, got 0"), ([], "holds something else")],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    (tmp_path / "thesis.txt").write_text("precious")
    done = quickstart(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
