"""Compile every kernel for GPUs that are not here, and read what it takes of them.

    TRITON_INTERPRET=0 python -m crosswkv_kernels.ahead_of_time --targets sm_90

prints registers, shared memory and spills of each kernel at its default configuration as a table.
"""

import os
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .triton_launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    """What one compiled kernel takes: registers per thread, bytes of shared memory and of spills per thread."""

    kernel: str
    target: str
    registers: int
    shared: int
    spills: int
    num_warps: int


def compile_launch(launch: Launch, target: str) -> Resources:
    """Compile one recorded launch for a target of `TARGETS`."""
    divisible = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(launch.kernel.arg_names) if name in launch.divisible
    }
    places = {(launch.kernel.arg_names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(launch.kernel, launch.signature, places, divisible)
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": launch.num_warps})
    registers, spills = (read_amd if target.startswith("gfx") else read_nvidia)(compiled)
    shared = compiled.metadata.shared
    return Resources(launch.kernel.__name__, target, registers, shared, spills, launch.num_warps)


def read_nvidia(compiled: Any) -> tuple[int, int]:
    """Registers and spilled bytes per thread, from the cubin."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(compiled.asm["cubin"])
    try:
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    finally:
        os.unlink(file.name)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def read_amd(compiled: Any) -> tuple[int, int]:
    """Vector registers and spilled registers times four bytes, from the assembly."""
    text = compiled.asm["amdgcn"]
    registers, spills = (
        int(re.findall(rf"\.{name}:\s*(\d+)", text)[-1]) for name in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, 4 * spills
