"""The rows of the kernel benchmark: what each says about itself, and the file that keeps the latest of each."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crosswkv_kernels
import torch

from .. import models
from ..environment import environment
from ..files import read_json_lines, write_json_lines
from . import fla_convention
from .kernel_cases import Case

Row = dict[str, Any]

PLACE = ("device", "processor", "threads", "dtype")
SHAPE = ("kind", "direction", "batch", "width", "tokens", "text_tokens")
STAMP = (*PLACE, "torch", "triton", "diffusers", "fla", "code")  # a row with another stamp is out of date
UNFINISHED = "the run was over"
CODE = ("src", "kernels", "scripts")  # what a row may depend on: a change of rows or pages is none
MEASURED_BY = ("fla_convention", "kernel_cases", "kernel_timing", "layer_sides", "scan_sides")


def about(device: torch.device, dtype: torch.dtype, measured_by: Iterable[str] = MEASURED_BY) -> Row:
    """What every row of a run says: where, when, and with which versions; `measured_by` are modules, from here."""
    return {
        **environment(device),
        "processor": processor(),
        "dtype": str(dtype).removeprefix("torch."),
        "triton": version("triton"),
        "fla": fla_convention.version(),
        "commit": commit(),
        "code": code_version(measured_by),
    }


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's name and number of cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def commit() -> str | None:
    """Of this file's repository as the process found it, `-dirty` if code was changed; None outside of one."""
    name = git("describe", "--always", "--tags")
    changed = name and git("status", "--porcelain", "--", *(f":/{folder}" for folder in CODE))
    return f"{name}-dirty" if changed else name


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def code_version(measured_by: Iterable[str] = MEASURED_BY) -> str:
    """A hash of everything that is measured and of what measures it."""
    folders = [Path(module.__file__).parent for module in (crosswkv_kernels, models) if module.__file__]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    paths += [Path(__file__).parent / f"{name}.py" for name in measured_by]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


class RowFile:
    """One row per place, shape and implementation, the latest; written anew, whole, after every case."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = {key_of(row): row for row in read_json_lines(path)}

    def put(self, rows: Iterable[Row]) -> None:
        self.rows |= {key_of(row): row for row in rows}
        write_json_lines(self.path, self.rows.values())

    def find(self, case: Case, name: str, this_run: Row) -> Row | None:
        """The row of one side of a case if it is of the same code, machine and versions, and as many rounds."""
        row = self.rows.get(key_of(this_run | asdict(case) | {"implementation": name}))
        if row is None or row.get("because") == UNFINISHED or row["rounds"] < this_run["rounds"]:
            return None
        return row if all(row[name] == this_run[name] for name in STAMP) else None


def key_of(row: Row) -> tuple:
    return tuple(row.get(name) for name in (*PLACE, *SHAPE, "implementation"))
