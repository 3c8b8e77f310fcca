"""The script that runs Diffusers' own tests."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/run_diffusers_tests.py"
TEST = "import diffusers\n\ndef test_stock():\n    assert diffusers.UNet2DConditionModel.__name__[0] == 'U'\n"


def run(checkout):
    command = [sys.executable, SCRIPT, checkout, "--only", "models_auto", "--output-dir", checkout / "out"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_unexplained_failure_fails_the_command(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "must be a checkout of Diffusers' repository" in done.stderr
    file = tmp_path / "tests/models/test_models_auto.py"
    file.parent.mkdir(parents=True)
    file.write_text(TEST, encoding="utf-8")
    done = run(tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1][:8]) == (1, "1 tests ")
    assert "test_models_auto.py: 0 of 1" in done.stdout
    assert "**Unexplained**" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
