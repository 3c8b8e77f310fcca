"""Compile every kernel for GPUs that are not here, and read what it takes of them.

    TRITON_INTERPRET=0 python -m crosswkv_kernels.ahead_of_time --targets sm_90

prints registers, shared memory and spills of each kernel, as our own calls start it, as a table.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .triton_launch import Launch, record_launches

DTYPES = ("bfloat16", "float16", "float32")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    """What one compiled kernel takes: registers per thread, bytes of shared memory and of spills per thread.

    `widths` are K and V of the launch's heads, `version` what tells launches of one kernel apart, see [`version_of`].
    """

    kernel: str
    version: str
    widths: tuple[int, int]
    dtype: str
    target: str
    registers: int
    shared: int
    spills: int
    num_warps: int


def compile_launch(launch: Launch, target: str, widths: tuple[int, int], dtype: str) -> Resources:
    """Compile one recorded launch for a target of `TARGETS`; `widths` are noted where the launch has none."""
    place = launch.kernel.arg_names.index
    divisible = {(place(name),): [["tt.divisibility", 16]] for name in launch.divisible_by_16}
    constants = {(place(name),): value for name, value in launch.constants.items()}
    source = ASTSource(launch.kernel, launch.signature, constants, divisible)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    registers, spills = (read_amd if target.startswith("gfx") else read_nvidia)(compiled)
    shared = compiled.metadata.shared
    name, version = launch.kernel.__name__, version_of(launch)
    widths = launch.constants.get("K", widths[0]), launch.constants.get("V", widths[1])
    return Resources(name, version, widths, dtype, target, registers, shared, spills, launch.num_warps)


def version_of(launch: Launch) -> str:
    """The feature map of a kernel that has one, of others the values per program and whether they lack receptances."""
    held = launch.constants
    if "MAP" in held:
        return str(held["MAP"])
    values = [f"BV {held['BV']}"] if "BV" in held else []
    return ", ".join(values + ["no r"] * ("p_r" in held))


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


def record_specimens(target: str, widths: tuple[int, int], dtype: torch.dtype, every: bool) -> list[Launch]:
    """What the calls of `specimens.py` start: one launch of each kernel and version unless `every`."""
    from .specimens import elementwise_specimens, scan_specimens

    with record_launches("amd" if target.startswith("gfx") else "nvidia"):
        launches = [*elementwise_specimens(*widths, [dtype]), *scan_specimens(*widths, [dtype])]
    if every:
        return launches
    launches = [launch for launch in launches if launch.constants.get("V", widths[1]) == widths[1]]
    kinds = {(launch.kernel, version_of(launch)): launch for launch in reversed(launches)}
    return list(kinds.values())  # the first has all its parts


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels ahead of time and print what they take.")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--widths", type=int, nargs=2, default=(64, 64), metavar=("K", "V"), help="of the heads")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=DTYPES)
    parser.add_argument("--every", action="store_true", help="every launch, not one of each version of a kernel")
    parser.add_argument("--json", action="store_true", help="one JSON object per line in the place of a table")
    arguments = parser.parse_args()
    if not arguments.json:
        print("| " + " | ".join(Resources._fields) + " |\n" + "|---" * len(Resources._fields) + "|")
    widths = (arguments.widths[0], arguments.widths[1])
    for target, dtype in itertools.product(arguments.targets, arguments.dtypes):
        for launch in record_specimens(target, widths, getattr(torch, dtype), arguments.every):
            row = compile_launch(launch, target, widths, dtype)
            line = json.dumps(row._asdict()) if arguments.json else f"| {' | '.join(map(str, row))} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
