"""How long calls take beside each other, what memory they need, what they move: on any torch device."""

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

Call = Callable[[], object]

FEWEST_REPETITIONS = 3
FLUSHED_BYTES = 256 * 2**20  # several times the L2 cache of any GPU
MEMORY_INFO = Path("/proc/meminfo")  # of Linux
COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30, "xpu": 2**30}
PEAK_MEMORY_BY = {"cpu": "torch.profiler, in a call of its own"} | {
    name: f"torch.{name}.max_memory_allocated, in a call of its own" for name in ("cuda", "xpu")
}


class Timing(NamedTuple):
    """Of repetitions that alternate with those of other calls; milliseconds."""

    median_ms: float
    q25_ms: float
    q75_ms: float
    repetitions: int


class Stopwatch:
    """Times one call at a time: by events on a GPU, whose L2 cache is emptied before, by the clock on a CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.events = device.type != "cpu"
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device) if self.events else None

    def __call__(self, call: Call) -> float:
        """Milliseconds. A GPU's time begins when it reaches the call, so launches count where they are waited for."""
        if self.flushed is None:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        module = torch.get_device_module(self.device)
        start, end = (module.Event(enable_timing=True) for _ in range(2))
        self.flushed.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def interleaved(
    calls: Mapping[str, Call], stopwatch: Callable[[Call], float], repetitions: int = 20, seconds: float = 0.2
) -> dict[str, Timing]:
    """What [`take_turns`] measures, summarized."""
    return {name: summarize(of) for name, of in take_turns(calls, stopwatch, repetitions, seconds).items()}


def take_turns(
    calls: Mapping[str, Call], stopwatch: Callable[[Call], float], repetitions: int, seconds: float
) -> dict[str, list[float]]:
    """Time calls in turn, A B A B ..., so that a drift of the machine meets all alike; milliseconds, round by round.

    Args:
        repetitions: rounds at most.
        seconds: per call; no round begins once the calls together have had this much each, but three are made.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(repetitions):
        if done >= FEWEST_REPETITIONS and sum(map(sum, times.values())) > 1e3 * seconds * len(calls):
            break
        for name, call in calls.items():
            times[name].append(stopwatch(call))
    return times


def summarize(times: list[float]) -> Timing:
    """Median and quartiles of milliseconds."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    q25, median, q75 = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, q25, q75, len(times))


def peak_memory(call: Call, device: torch.device) -> int:
    """Bytes that a call holds at its height, its results too, beyond what was there before."""
    if device.type == "cpu":
        return peak_memory_on_cpu(call)
    module = torch.get_device_module(device)
    module.synchronize(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    kept = call()
    module.synchronize(device)
    peak = module.max_memory_allocated(device) - before
    del kept
    return peak


def peak_memory_on_cpu(call: Call) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with quiet_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = call()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """The profiler of torch 2.13 writes two lines there each time, from C++."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def copy_bandwidth(stopwatch: Stopwatch, size: int | None = None) -> float:
    """Bytes per second, read and written, of a large copy on the device: the best of ten."""
    size = size or COPIED_BYTES[stopwatch.device.type]
    source, target = torch.ones(2, size, dtype=torch.uint8, device=stopwatch.device)
    stopwatch(lambda: target.copy_(source))
    return 2 * size / (1e-3 * min(stopwatch(lambda: target.copy_(source)) for _ in range(10)))


@dataclass
class Launches:
    """Triton kernels that were started, and the bytes of their tensor arguments, each counted once per launch."""

    count: int = 0
    bytes: int = 0


@contextmanager
def count_launches() -> Iterator[Launches]:
    """Inside, Triton launches are counted, ours and others'; torch's own kernels are not seen."""
    launches = Launches()
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield launches
        return
    started = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        launches.count += 1
        launches.bytes += sum(x.nbytes for x in tensors)
        return started(self, *args, **kwargs)

    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = started


def free_memory() -> int:
    """Bytes of main memory that a program could have: what only caches files counts, where a system tells it."""
    if MEMORY_INFO.exists():
        text = MEMORY_INFO.read_text(encoding="utf-8")
        (available,) = re.findall(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
        return 1024 * int(available)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
