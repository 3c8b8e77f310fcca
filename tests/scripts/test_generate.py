"""The command as a person types it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/generate.py"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the script in this process; its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return (stopped.value.code, *capsys.readouterr())

    return run


def test_make_images_and_make_one_again(make_pipeline, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("pipeline")
    Path("prompts.txt").write_text("a handwritten seven\n\n手写的数字三\n", encoding="utf-8-sig")
    model = ("--model", "pipeline", "--device", "cpu", "--steps", "2", "--output-dir", "images")
    prompts = ("--prompts-file", "prompts.txt", "--num-images", "2", "--seed", "7")
    line = [sys.executable, SCRIPT, *model, *prompts, "--save-prompt-state", "states.safetensors"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4.0/4 images" in done.stderr
    assert done.stdout.splitlines() == [
        "images go to images",
        "contact sheet: images/contact-sheet.png",
        "prompt state: states.safetensors",
        "4 images in images",
    ]
    record = json.loads(Path("images/0001-seed8.json").read_text(encoding="utf-8"))
    assert record["image"]["prompt"] == "手写的数字三"

    code, output, _ = command("--from-json", "images/0001-seed8.json", "--output-dir", "again")
    assert (code, output.splitlines()[1:]) == (0, ["1 image in again", "the same pixels as recorded"])
    assert Path("again/0000-seed8.png").read_bytes() == Path("images/0001-seed8.png").read_bytes()

    more = ("--seed", "9", "--num-images", "2", "--output-dir", "others")
    _, output, _ = command("--from-json", "images/0001-seed8.json", *more)
    assert output.splitlines()[1:] == ["contact sheet: others/contact-sheet.png", "2 images in others"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "pipeline"], "error: There is no file of prompts at prompts.txt."),
        ([], "--model (or --from-json) is needed"),
        (["--from-json", "latin.txt"], "error: latin.txt is no record of an image"),
        (["--from-json", "other.json"], "error: other.json is no record of an image"),
        (["--from-json", "newer.json"], "error: newer.json has format 99, this version reads up to 1"),
        (["--from-json", "lost.json"], "error: There is no record of an image at lost.json"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, command, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("numéro".encode("latin-1"))
    Path("other.json").write_text('{"format": "something else"}')
    Path("newer.json").write_text('{"format": "diffusers_crosswkv image", "format_version": 99}')
    code, _, errors = command(*arguments, "--prompts-file", "prompts.txt")
    assert code in (1, 2)
    assert message in errors
    assert not Path("runs").exists()


def test_ctrl_c(tmp_path, command, make_pipeline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("pipeline")
    monkeypatch.setattr("diffusers_crosswkv.generation.run.make_image", Mock(side_effect=KeyboardInterrupt))
    code, output, _ = command("--model", "pipeline", "--seed", "1", "a seven")
    assert code == 130
    assert "Stopped; the images that were finished are kept." in output
