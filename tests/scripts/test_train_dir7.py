"""The command as a person types it: once in one process, once in two, and to a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config import load_config_from_file
from hub_server import WRITER, HubServer
from huggingface_hub import ModelCard
from running import run_script

from diffusers_crosswkv.finetuning.records import read_metrics

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/train_dir7.py"
CONFIGS = sorted((ROOT / "scripts/accelerate").glob("*.yaml"))
SHORT = ("--max_train_steps", "2", "--batch_size", "4", "--validation_examples", "4", "--report_to", "none")
PROMPTS = (
    "--validation_prompts",
    "a seven",
    "an eight",
    "--validation-inference-steps",
    "2",
    "--num_validation_images=1",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def test_train_then_lora_and_state_on_top(monkeypatch, capsys):
    def command(*arguments):
        status = run_script(monkeypatch, SCRIPT, "--data", "digits", *SHORT, *arguments)
        return status, capsys.readouterr()

    status, said = command("--preset", "tiny", *PROMPTS, "--output-dir", "runs/base")
    assert status == 0, said.err
    assert "training: 100%" in said.err and "images/s=" in said.err
    assert "pictures: runs/base/validation/step-000002.png" in said.out
    assert "result: runs/base/pipeline" in said.out

    status, said = command("--preset", "tiny", *PROMPTS, "--output-dir", "runs/base")
    assert status == 0 and "going on from step 2" in said.out
    for preset, file in (("lora", "pytorch_lora_weights"), ("state", "prompt_state")):
        start = ("--model", "runs/base/pipeline", "--preset", preset, "--output_dir", f"runs/{preset}")
        status, said = command(*start, "--dry_run")
        assert status == 0 and "All is well; nothing was kept." in said.out
        assert not Path("runs", preset).exists()
        status, said = command(*start)
        assert status == 0, said.err
        *_, example = said.out.splitlines()
        assert example.startswith("draw with it: python scripts/generate.py --model runs/base/pipeline --")
        words = example.split("generate.py ")[1].split(" '")[0].split()
        where = ("--output-dir", f"images/{preset}", "--steps", "2", "--device", "cpu")
        assert run_script(monkeypatch, ROOT / "scripts/generate.py", *words, "a seven", *where) == 0
        assert Path("runs", preset, f"{file}.safetensors").is_file()
        capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output_dir must be given"),
        (
            ("--output_dir", "x", "--model", "runs/nothing/pipeline"),
            "error: There is no folder runs/nothing/pipeline.",
        ),
        (
            ("--output_dir", "x", "--preset", "tiny", "--resolution", "7"),
            "error: `resolution` must be a multiple of 2",
        ),
        (("--output_dir", "full", "--preset", "tiny"), "full holds something else"),
    ],
)
def test_bad_input_is_one_clear_line(monkeypatch, capsys, arguments, message):
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("precious")
    status = run_script(monkeypatch, SCRIPT, "--data", "digits", *SHORT, *arguments)
    assert status == 1
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not Path("x").exists()


def test_two_processes_validate_as_one(monkeypatch, capsys):
    arguments = ("--data", "digits", "--preset", "tiny", *SHORT, *PROMPTS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [*launch, SCRIPT, *arguments, "--output_dir", "two/run"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("draw with it:") == 1
    assert json.loads(Path("two/run/facts.json").read_text())["hardware"].startswith("2 x ")
    assert run_script(monkeypatch, SCRIPT, *arguments, "--output_dir", "one/run") == 0

    def losses(folder, name):
        return [line[name] for line in read_metrics(Path(folder, "run/metrics.jsonl")) if name in line]

    start, end = losses("two", "validation_loss")
    assert start == losses("one", "validation_loss")[0]  # to the last bit
    assert end == pytest.approx(losses("one", "validation_loss")[-1], rel=1e-4)
    assert losses("two", "loss") == pytest.approx(losses("one", "loss"), rel=1e-4)
    first = "run/validation/step-000000.png"
    assert Path("two", first).read_bytes() == Path("one", first).read_bytes()


def test_push_while_training_and_afterwards(make_pipeline, tmp_path):
    make_pipeline().save_pretrained("base")
    with HubServer() as hub:
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        code = f"""
import runpy, sys
def command(*arguments):
    sys.argv = [{str(SCRIPT)!r}, "--data", "digits", *{(*SHORT, *PROMPTS)!r}, *arguments, "--push_to_hub"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stopped:
        print("status", stopped.code)
tiny = ("--preset", "tiny", "--output_dir", "digits", "--license", "mit")
command(*tiny, "--hub_model_id", "somebody/else")
command(*tiny, "--hub_token", "hf_wrong")
command(*tiny)
command(*tiny)
command("--model", "base", "--preset", "lora", "--output_dir", "lora")
command("--model", "base", "--preset", "state", "--output_dir", "state", "--hub_private")
"""
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 1"] * 2 + ["status 0"] * 4, done.stderr
    assert "must have write access to somebody/else, but is that of writer" in done.stderr
    assert "The token must be a valid one of the Hub" in done.stderr
    assert f"published: {hub.url}/writer/digits" in done.stdout
    files = hub.repositories["writer/digits"].branches["main"].files
    assert {"model_index.json", "pipeline.py", "README.md", "images/step-000002.png"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    for row in (
        "| steps | 2 |",
        "| batch size | 4 |",
        "| base model | from scratch |",
        "| data | digits, 1,793 images",
    ):
        assert row in card.content
    assert len(hub.repositories["writer/digits"].commits) >= 2
    for name, file in (("lora", "pytorch_lora_weights.safetensors"), ("state", "prompt_state.safetensors")):
        files = hub.repositories[f"writer/{name}"].branches["main"].files
        assert files.keys() == {file, "README.md", "images/step-000002.png"}
        assert f'"{file}")' in files["README.md"].decode()
    assert hub.repositories["writer/state"].private
    assert set(hub.repositories) == {"writer/digits", "writer/lora", "writer/state"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.mixed_precision in ("no", "bf16")


def test_what_is_sharded():
    (path,) = [path for path in CONFIGS if path.stem == "fsdp2"]
    options = load_config_from_file(str(path)).fsdp_config
    assert options["fsdp_version"] == 2
    assert options["fsdp_transformer_layer_cls_to_wrap"] == "ResnetBlock2D,FeedForward"
