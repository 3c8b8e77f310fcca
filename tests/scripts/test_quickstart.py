"""The quickstart end to end, in a small setting: the same script, fewer steps and images."""

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from running import run_script

SCRIPT = Path(__file__).parents[2] / "scripts/quickstart.py"


def test_train_stop_go_on_save_load_draw(monkeypatch, capfd, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--output-dir", folder, "--num-images", 40, "--steps", 3)
    status, said = run_script(monkeypatch, SCRIPT, *arguments), capfd.readouterr()  # it draws in a new process
    assert status == 0, said.err
    assert "training: 100%" in said.err
    assert "loss=" in said.err
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
        assert language in said.out
    assert "of held-out real digits right" in said.out
    assert str(folder / "digits.png") in said.out
    with Image.open(folder / "digits.png") as picture:
        assert picture.size == (796, 314)
    report = json.loads((folder / "report.json").read_text())
    assert report["agreement"]["count"] == 40
    monkeypatch.setattr("subprocess.run", lambda *command, **options: subprocess.CompletedProcess(command, 0))
    assert run_script(monkeypatch, SCRIPT, *arguments) == 0
    assert "going on from step 3" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", 0], "`max_train_steps` must be at least 1, got 0"), ([], "holds something else")],
)
def test_bad_input_is_one_clear_line(monkeypatch, tmp_path, arguments, message):
    (tmp_path / "thesis.txt").write_text("precious")
    status = run_script(monkeypatch, SCRIPT, "--output-dir", tmp_path, *arguments)
    assert status.startswith("error: ") and message in status and "\n" not in status
