"""Every kernel compiles for GPUs that are not here, at the configuration in which our own calls start it."""

import ast
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import crosswkv_kernels
import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# bytes that a block may have
SMALL = 99 * 1024  # on sm_86, sm_89 and sm_120, which run what is compiled for sm_80
# of long sequences with few heads; wide heads in float32 would need more shared memory than many NVIDIA GPUs have
OF_SEGMENTS = {"wkv7_segments_kernel", "wkv7_segments_backward_kernel", "wkv7_combine_kernel"}
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


def compile_kernels(*arguments, targets=TARGETS):
    """In processes of their own, one for each target: in this one Triton interprets."""
    command = [sys.executable, "-m", "crosswkv_kernels.ahead_of_time", "--json", *arguments, "--targets"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    pipes = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rows = []
    for pair in (targets[:2], targets[2:]):
        processes = [subprocess.Popen([*command, target], **pipes) for target in pair]
        for process in processes:
            output, errors = process.communicate()
            assert process.returncode == 0, errors[-3000:]
            rows += [json.loads(line) for line in output.splitlines()]
    return rows


def kernels_in_the_source():
    """Functions with `@triton.jit` whose first argument is a pointer and that no other one calls."""
    functions = {}
    for path in Path(crosswkv_kernels.__file__).parent.glob("triton_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(x) for x in node.decorator_list):
                functions[node.name] = node
    called = {
        call.func.id
        for node in functions.values()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    return set(functions) - called


@pytest.mark.parametrize(("widths", "targets"), [((64, 64), TARGETS), ((64, 16), ("sm_90",))], ids=str)
def test_every_kernel_compiles(widths, targets):
    """Heads as `state` fusion has them for the target whose spills are held to; the others are in the full test."""
    rows = compile_kernels("--dtypes", "bfloat16", "--widths", *map(str, widths), targets=targets)
    for target in targets:
        compiled = [row for row in rows if row["target"] == target]
        assert {row["kernel"] for row in compiled} == kernels_in_the_source()
        products = {row["kernel"] for row in compiled if row["version"] == "quadratic"}
        assert products == {"writes_forward", "writes_backward", "readout_forward", "readout_backward"}
    assert min(row["registers"] for row in rows) >= 16  # fewer: the compiler gave up and left a trap
    assert max(row["shared"] for row in rows) <= 64 * 1024  # what every GPU has
    hopper = [row for row in rows if row["target"] == "sm_90"]
    assert not [row for row in hopper if row["spills"]]
    scans = {row["version"] for row in hopper if row["kernel"] == "wkv7_forward_kernel"}
    blocks = {min(widths[1], 32), widths[1]}  # of values, with few heads and with many
    assert scans == {f"BV {block}{reads}" for block in blocks for reads in ("", ", no r")}


@pytest.mark.full
@pytest.mark.parametrize("widths", [(64, 64), (64, 16), (16, 16), (48, 80), (128, 128)], ids=str)
def test_every_launch_compiles(widths):
    dtypes = ("bfloat16", "float16", "float32")
    rows = compile_kernels("--every", "--dtypes", *dtypes, "--widths", *map(str, widths))
    for target, dtype in itertools.product(TARGETS, dtypes):
        compiled = {row["kernel"] for row in rows if (row["target"], row["dtype"]) == (target, dtype)}
        in_one_piece = max(widths) > 64 and dtype == "float32" and target.startswith("sm_")
        assert compiled == kernels_in_the_source() - (OF_SEGMENTS if in_one_piece else set())
    assert min(row["registers"] for row in rows) >= 16
    assert not [row for row in rows if row["shared"] > SHARED_MEMORY[row["target"]]]
    ampere = [row["shared"] for row in rows if (row["target"], row["dtype"]) == ("sm_80", "bfloat16")]
    assert max(ampere) <= SMALL
    if widths in [(64, 64), (64, 16)]:
        default = {"target": "sm_90", "dtype": "bfloat16", "widths": list(widths)}
        defaults = [row for row in rows if row.items() >= default.items()]
        assert len(defaults) > 50
        assert not [row for row in defaults if row["spills"]]
