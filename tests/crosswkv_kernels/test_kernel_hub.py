"""The folder `kernels/` as a repository of the Kernel Hub, and its README."""

import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).parents[2] / "kernels"
LOAD = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel

kernel = get_local_kernel(Path(sys.argv[1]))
assert "crosswkv_kernels" not in sys.modules
assert Path(kernel.__file__).parts[-2:] == ("crosswkv_kernels", "__init__.py")
inputs = {name: torch.rand(1, 20, 2, 16) for name in ("r", "w", "k", "v", "kappa", "a")}
inputs |= {"w": -0.6 * inputs["w"], "kappa": torch.nn.functional.normalize(inputs["kappa"], dim=-1)}
inputs["k"].requires_grad_()
results = [kernel.wkv7(**inputs, backend=backend)[0] for backend in ("triton", "reference")]
torch.testing.assert_close(*results)
results[0].sum().backward()
assert inputs["k"].grad.abs().sum() > 0
"""


@pytest.mark.skipif(not list(distributions(name="kernels")), reason="Hugging Face's kernels is not installed")
def test_loads_as_a_local_kernel(tmp_path):
    """In a process of its own, whose only path to the package is the repository."""
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOAD, str(KERNELS)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (KERNELS / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["o"].shape == (2, 4096, 320)
    assert torch.isfinite(names["v"].grad).all() and names["v"].grad.abs().sum() > 0


def test_the_table_names_every_kernel():
    table = (KERNELS / "README.md").read_text(encoding="utf-8")
    for path in (KERNELS / "crosswkv_kernels").glob("triton_*.py"):
        launched = re.findall(r"launch\(\s*(\w+),", path.read_text(encoding="utf-8"))
        for kernel in launched:
            assert f"| {kernel} |" in table, kernel
