"""The kernel benchmark: our kernels and layers beside those they would replace, both sides in one run.

Each case is a comparison at one shape. Its sides take turns, and one row per side says how long it took, what memory
it needed and how far it is from float64. What cannot run, or would take too long here, has a row that says why.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from .kernel_cases import CROSSWKV_LAYERS, KINDS, Case, Estimate, Side, Sides, cases
from .kernel_rows import SHAPE, UNFINISHED, Row, RowFile, about
from .kernel_timing import (
    PEAK_MEMORY_BY,
    Stopwatch,
    Timing,
    copy_bandwidth,
    count_launches,
    free_memory,
    interleaved,
    peak_memory,
)
from .layer_sides import attention_sides, layer_estimate, layer_sides, text_sides
from .scan_sides import scan_estimate, scan_names, scan_sides, scans_that_cannot_run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cpu", "cuda", "xpu")
SECONDS = {"cpu": 900.0, "cuda": 330.0, "xpu": 330.0}
CALLS_PER_RUN = 180  # a call that would take a larger share of the run's time than one of so many is not made
LARGEST_SHARE_OF_MEMORY = 0.7


class Kind(NamedTuple):
    """How cases of one kind are made and judged beforehand."""

    names: Callable[[Case], list[str]]
    estimate: Callable[[Case, str, torch.dtype], Estimate]
    sides: Callable[[Case, torch.device, torch.dtype], Sides]


HOW: dict[str, Kind] = {
    "layer": Kind(lambda case: ["softmax", *CROSSWKV_LAYERS], layer_estimate, layer_sides),
    "text": Kind(
        lambda case: ["projections", "projections, mixes, LoRAs", "scan"],
        layer_estimate,
        text_sides,
    ),
    "attention": Kind(lambda case: ["sdpa", "state readout"], layer_estimate, attention_sides),
    "scan": Kind(scan_names, scan_estimate, scan_sides),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, and where the rows go.

    Args:
        output_dir: folder of the rows, `<device>.jsonl`.
        device: `cpu`, `cuda` or `xpu`, or one of several, `cuda:1`.
        dtype: of [`DTYPES`]; bfloat16 on a GPU, float32 on a CPU if None.
        kinds: of [`KINDS`].
        quick: few shapes, few repetitions.
        again: measure what has been measured already.
        repetitions: at most, of each call; 20, or 5 if quick, if None.
        seconds: the whole run; no case begins later. 900 on a CPU, 330 on a GPU if None.

    Raises:
        ValueError: something is unknown, out of range, or not available here.
    """

    output_dir: Path
    device: str = "cpu"
    dtype: str | None = None
    kinds: tuple[str, ...] = KINDS
    quick: bool = False
    again: bool = False
    repetitions: int | None = None
    seconds: float | None = None

    def __post_init__(self):
        name = self.device.split(":")[0]
        if name not in DEVICES:
            raise ValueError(f"`device` must be one of {', '.join(DEVICES)}, got {self.device!r}.")
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
            raise ValueError(f"`device` must be one that torch {torch.__version__} can use here: {error}") from error
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"`kinds` must be of {', '.join(KINDS)}, got {list(self.kinds)}.")
        if self.repetitions is not None and self.repetitions < 1:
            raise ValueError(f"`repetitions` must be at least 1, got {self.repetitions}.")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"`seconds` must be positive, got {self.seconds}.")
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"`output_dir` must be a folder, got the file {self.output_dir}.")

    @property
    def rounds(self) -> int:
        return self.repetitions or (5 if self.quick else 20)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype or ("float32" if self.torch_device.type == "cpu" else "bfloat16")]

    @property
    def rows_path(self) -> Path:
        return self.output_dir / f"{self.torch_device.type}.jsonl"


class Benchmark:
    """One run: measures what the file of rows lacks."""

    def __init__(self, config: BenchmarkConfig):
        self.config = config
        self.device, self.dtype = config.torch_device, config.torch_dtype
        if self.device.index is not None:
            torch.accelerator.set_device_index(self.device.index)
        self.stopwatch = Stopwatch(self.device)
        self.seconds = config.seconds or SECONDS[self.device.type]
        self.start = time.perf_counter()
        self.about = about(self.device, self.dtype) | {"rounds": config.rounds}
        self.file = RowFile(config.rows_path)
        self.pace: dict[tuple[str, ...], float] = {}  # milliseconds per unit of work, of the last case measured
        self.cannot_run = scans_that_cannot_run(self.device, self.dtype) if "scan" in config.kinds else {}

    @functools.cached_property
    def bandwidth(self) -> float:
        """Of a copy on this device, bytes per second."""
        return copy_bandwidth(self.stopwatch)

    def run(self, progress: bool = True) -> int:
        """Measure, case by case into the file; returns how many cases were measured."""
        self.file.put(self.rows_of_machine())
        count = 0
        chosen = cases(self.device.type, self.config.quick, self.config.kinds)
        for case in tqdm(chosen, desc="cases", disable=not progress):
            rows = self.known_rows(case)
            if rows is None or self.config.again:
                rows = self.rows_of(case)
                self.file.put(self.about | asdict(case) | {"implementation": name} | rows[name] for name in rows)
                count += any("median_ms" in row for row in rows.values())
            self.learn_pace(case, rows)
        return count

    def known_rows(self, case: Case) -> dict[str, Row] | None:
        """Those of all sides, from earlier runs; None if one is missing, for sides must come from one run."""
        found = {name: self.file.find(case, name, self.about) for name in self.names(case)}
        rows = {name: row for name, row in found.items() if row is not None}
        return rows if len(rows) == len(found) else None

    def names(self, case: Case) -> list[str]:
        """The sides that this machine can run."""
        return [name for name in HOW[case.kind].names(case) if case.kind != "scan" or name not in self.cannot_run]

    def rows_of_machine(self) -> list[Row]:
        """One row for each implementation that this machine cannot run, whatever the shape."""
        shape = dict.fromkeys(SHAPE) | {"kind": "scan"}
        return [
            self.about | shape | {"implementation": name, "not_run": reason, "because": "machine"}
            for name, reason in self.cannot_run.items()
        ]

    def learn_pace(self, case: Case, rows: dict[str, Row]) -> None:
        for name, row in rows.items():
            if "median_ms" in row:
                work = HOW[case.kind].estimate(case, name, self.dtype).work
                self.pace[case.kind, case.direction, name] = row["median_ms"] / work

    def too_much(self, case: Case, name: str) -> Row | None:
        """A row that says why a side is not measured: memory, or time."""
        estimate = HOW[case.kind].estimate(case, name, self.dtype)
        free = free_memory()
        if self.device.type == "cpu" and estimate.memory > LARGEST_SHARE_OF_MEMORY * free:  # a GPU says so in time
            needed, has = (f"{x / 2**30:.0f} GiB" for x in (estimate.memory, free))
            reason = f"would need about {needed} of memory, more than {LARGEST_SHARE_OF_MEMORY:.0%} of the {has} free"
            return {"not_run": reason, "because": "memory"}
        expected = 1e-3 * estimate.work * self.pace.get((case.kind, case.direction, name), 0.0)
        if expected > self.seconds / CALLS_PER_RUN:
            reason = f"one call would take about {expected:.2g} s, too long for a run of {self.seconds:.0f} s"
            return {"not_run": reason, "because": "time"}
        if time.perf_counter() - self.start > self.seconds:
            return {"not_run": f"the run's {self.seconds:.0f} s were over; call again to go on", "because": UNFINISHED}
        return None

    def rows_of(self, case: Case) -> dict[str, Row]:
        """One row per side, measured or not."""
        rows = {name: row for name in self.names(case) if (row := self.too_much(case, name))}
        names = [name for name in self.names(case) if name not in rows]
        return (rows | self.measure(case, names)) if names else rows

    def measure(self, case: Case, names: list[str]) -> dict[str, Row]:
        """Warm up, let the sides take turns, then do what is not timed; a side that fails says how."""
        rows: dict[str, Row] = {}
        try:
            makers = HOW[case.kind].sides(case, self.device, self.dtype)
        except torch.OutOfMemoryError as error:
            return {name: failure(error) for name in names}
        sides: dict[str, Side] = {}
        for name in names:
            try:
                side = makers[name]()
                rows[name] = {"first_call_ms": significant(self.stopwatch(side.call))}
                self.stopwatch(side.call)
                sides[name] = side
            except Exception as error:  # compilers fail in many ways, and one of them must not end the run
                rows[name] = failure(error)
        calls = {name: side.call for name, side in sides.items()}
        try:
            timings = interleaved(calls, self.stopwatch, self.config.rounds)
        except torch.OutOfMemoryError as error:  # what other sides keep was not there at the first calls
            return rows | {name: failure(error) for name in sides}
        for name, side in sides.items():
            try:
                rows[name] |= self.untimed(side, timings[name])
            except torch.OutOfMemoryError as error:
                rows[name] = failure(error)
        return rows

    def untimed(self, side: Side, timing: Timing) -> Row:
        """The rest of a row: memory, bytes, error."""
        with count_launches() as launches:
            peak = peak_memory(side.call, self.device)
        row = {
            **{key: significant(value) for key, value in timing._asdict().items()},
            "peak_bytes": peak,
            "peak_bytes_by": PEAK_MEMORY_BY[self.device.type],
            "minimal_bytes": side.minimal_bytes,
            "copy_bytes_per_second": significant(self.bandwidth),
            "bandwidth_share": significant(side.minimal_bytes / (1e-3 * timing.median_ms) / self.bandwidth),
        }
        if launches.count:
            row |= {"triton_launches": launches.count, "triton_argument_bytes": launches.bytes}
        if side.error is not None:
            row |= {"error": significant(side.error()), "error_at": side.error_at}
        return row


def failure(error: Exception) -> Row:
    if isinstance(error, TimeoutError):
        return {"not_run": str(error), "because": UNFINISHED}
    message = str(error).splitlines()
    reason = f"{type(error).__name__}: {message[0] if message else 'no message'}"
    return {"not_run": reason, "because": reason}


def significant(value: float) -> float:
    """Four digits, whole numbers as they are."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
