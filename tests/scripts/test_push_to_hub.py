"""The command that publishes, against a Hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import WRITER, HubServer
from huggingface_hub import ModelCard
from running import run_script

from diffusers_crosswkv.hub import Metric, ModelFacts, save_facts

SCRIPT = Path(__file__).parents[2] / "scripts/push_to_hub.py"


@pytest.fixture
def push(tmp_path):
    """Run the command, and return what it did and the repository that it filled."""
    with HubServer() as hub:
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def run(*arguments):
            command = [sys.executable, SCRIPT, *map(str, arguments)]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            return done, hub

        yield run


def test_publish(push, make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "saved")
    metric = Metric("read as asked", "accuracy", 0.5, "generated digits", "generated", "by eye")
    save_facts(ModelFacts(steps=7, language=("en",), metrics=(metric,)), tmp_path / "facts.json")
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"a picture")
    facts = ["--facts", tmp_path / "facts.json", "--license", "mit", "--grid", grid]
    done, hub = push(tmp_path / "saved", "writer/digits", *facts, "--private", "--image", "a seven", grid)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/writer/digits\nmodel card written; {hub.url}/writer/digits/commit/")
    repository = hub.repositories["writer/digits"]
    assert repository.private
    files = repository.branches["main"].files
    assert files["images/grid.png"] == b"a picture"
    assert {"pipeline.py", "unet/diffusers_crosswkv.py", "model_index.json"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.eval_results[0].metric_value) == ("mit", ["en"], 0.5)
    assert "| steps | 7 |" in card.content
    assert "![Pictures that the model made](images/grid.png)" in card.content


def test_bad_input_is_one_clear_line(monkeypatch, tmp_path):
    """Before it asks the Hub anything: here there is none."""
    status = run_script(monkeypatch, SCRIPT, tmp_path / "gone", "writer/digits")
    assert status.startswith(f"error: There must be a folder at {tmp_path / 'gone'}") and "\n" not in status
