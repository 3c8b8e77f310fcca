"""New Python processes, with or without our packages: what a stranger's machine does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

PRELUDE = """
import json, sys
import numpy, torch
torch.set_num_threads(1)

def pixels(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    seeded = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "np"}
    return pipe("a handwritten seven", **seeded, **arguments).images
"""
WITHOUT_PACKAGE = """
import importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers_crosswkv", "crosswkv_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotInstalled())  # beats editable installs too
"""


def pixels(pipe, **arguments):
    """Pictures of a fixed prompt and seed; `pixels` in a new process gives the same."""
    seeded = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "np"}
    return pipe("a handwritten seven", **seeded, **arguments).images


def run_python(code: str, home: Path, *, with_package: bool = True, **environment: str):
    """Run `code` in a new process; what it gives to `json.dumps` and prints last is returned, with all of stderr.

    `home` holds the caches of the Hub and of remote code. `pixels(pipe)` is there.
    """
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"HF_HUB_OFFLINE": "0" if "HF_ENDPOINT" in environment else "1", **environment}
    code = PRELUDE + code
    if not with_package:
        env.pop("PYTHONPATH", None)
        code = WITHOUT_PACKAGE + code
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
