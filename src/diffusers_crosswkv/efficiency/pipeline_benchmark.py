"""Time per image and peak memory of whole pipelines: DIR-7 beside the stock U-Net of the same config, in one run.

An image costs: the text encoder and, for DIR-7, the scan, once per prompt; a number of like steps; the VAE. Each part
is timed alone, both sides taking turns, and rows of `image` say how well the sum of the parts meets whole images.
"""

from dataclasses import asdict, replace

import torch
from tqdm.auto import tqdm

from ..evaluation.kernel_benchmark import LARGEST_SHARE_OF_MEMORY, BenchmarkConfig, failure, significant
from ..evaluation.kernel_cases import Case
from ..evaluation.kernel_rows import Row, RowFile, about
from ..evaluation.kernel_timing import PEAK_MEMORY_BY, Call, Stopwatch, free_memory, peak_memory, summarize, take_turns
from ..evaluation.training_speed import load_average
from .pipeline_flops import FlopCount, flop_row
from .pipeline_memory import MemoryMeasurement
from .pipeline_sides import SIDES, STATE, VAE_FACTOR, Pipelines

STEPS = 50
LENGTHS = (10, 50, 77, 100, 200, 500, 1000, 4000)
SIZES = (256, 512, 1024, 2048)  # pixels
WHOLE_IMAGES = ((256, 77),)  # size and length at which the sum of the parts is compared with whole images
QUICK_LENGTHS, QUICK_SIZES, QUICK_WHOLE_IMAGES, QUICK_STEPS = (10, 100), (64, 128), ((64, 10),), 4
FEW_LENGTHS = (77, 4000)  # at sizes of which a step is slow
PRESETS = {"cpu": ("dir7_s",), "cuda": ("dir7_s", "dir7_h"), "xpu": ("dir7_s", "dir7_h")}
QUICK_PRESETS = ("dir7_tiny",)
TEXT, SCAN, STEP, DECODE, IMAGE = "text encoder", "scan", "step", "decode", "image"
PARTS = (TEXT, SCAN, STEP, DECODE)
SLOW_SECONDS = 4.0  # such a call needs no warm-up, and is made twice
ONCE_SECONDS = 60.0  # a longer one is made once, a step with the first of the few lengths alone
LONGEST_SECONDS = 400.0  # a longer one is not made
SECONDS = 4.0  # per call that is not slow, after three rounds
OWN = ("pipeline_benchmark", "pipeline_flops", "pipeline_sides")
MEASURED_BY = ("kernel_timing", "prompt_length", *(f"../efficiency/{name}" for name in OWN))


class Measurement:
    """One run: measures what the file of rows lacks, part by part."""

    def __init__(self, config: BenchmarkConfig, progress: bool = True):
        self.config, self.progress = config, progress
        self.device, self.dtype = config.torch_device, config.torch_dtype
        self.stopwatch = Stopwatch(self.device)
        self.lengths: tuple[int, ...] = QUICK_LENGTHS if config.quick else LENGTHS
        self.sizes: tuple[int, ...] = QUICK_SIZES if config.quick else SIZES
        self.whole_images = QUICK_WHOLE_IMAGES if config.quick else WHOLE_IMAGES
        self.steps = QUICK_STEPS if config.quick else STEPS
        self.about = about(self.device, self.dtype, MEASURED_BY) | {"rounds": config.rounds, "steps": self.steps}
        self.file = RowFile(config.rows_path)

    def run(self) -> int:
        """Returns how many parts were measured, and not found in the file."""
        presets = QUICK_PRESETS if self.config.quick else PRESETS[self.device.type]
        count = 0
        with torch.inference_mode():
            for preset in presets:
                pipelines = Pipelines.make(preset, self.device, self.dtype)
                count += self.measure(pipelines, FlopCount(pipelines.unets))
                del pipelines
        return count

    def measure(self, pipelines: Pipelines, flops: FlopCount) -> int:
        """Of one preset; small sizes and short prompts first, for they tell what larger ones will need."""
        name, steps = pipelines.name, []
        todo: list[tuple[str, int, int]] = [(IMAGE, size, length) for size, length in self.whole_images]
        todo += [(part, 0, length) for length in self.lengths for part in (TEXT, SCAN)]
        for size in self.sizes:
            steps += [(STEP, size, length) for length in self.lengths]
            todo += [(DECODE, size, 0), *steps[-len(self.lengths) :]]
        count = 0
        for part, size, length in (bar := tqdm(todo, desc=name, disable=not self.progress)):
            bar.set_postfix_str(f"{part}, {size} px, {length} tokens")
            case = Case(name, part, 1, size, (size // VAE_FACTOR) ** 2, length)
            if all(self.file.find(case, side, self.about) for side in sides_of(part)):
                continue
            rows = self.rows_of(case, pipelines, flops)
            load = {"load_average": load_average()}
            self.file.put(self.about | load | asdict(case) | {"implementation": side} | rows[side] for side in rows)
            count += 1
        return count

    def rows_of(self, case: Case, pipelines: Pipelines, flops: FlopCount) -> dict[str, Row]:
        """One row per side, measured or not."""
        sides = sides_of(case.direction)
        counted: dict[str, Row] = {side: {} for side in sides}
        if case.direction == STEP:
            counted = {side: flop_row(flops, side, case.width, case.text_tokens or 0) for side in sides}
        elif case.direction == SCAN:
            counted = {STATE: {"flops": flops.scan(case.text_tokens or 0)}}
        if reason := self.too_much(case, {side: row.get("flops", 0) for side, row in counted.items()}):
            return {side: counted[side] | reason for side in sides}
        try:
            calls = self.calls(case, pipelines)
            measured = self.timed(calls)
            for side, call in calls.items():
                if case.direction != IMAGE:
                    measured[side] |= self.peak(call, measured[side]["median_ms"])
        except torch.OutOfMemoryError as error:
            measured = {side: failure(error) for side in sides}
        return {side: counted[side] | measured[side] for side in sides}

    def calls(self, case: Case, pipelines: Pipelines) -> dict[str, Call]:
        """What is timed, a call per side."""
        size, length = case.width, case.text_tokens or 0
        if case.direction == IMAGE:
            return dict(pipelines.whole_images(size, length, self.steps))
        if case.direction == TEXT:
            return {TEXT: lambda: pipelines.encode(length)}
        if case.direction == DECODE:
            latents = pipelines.random_latents(size)
            return {DECODE: lambda: pipelines.decode(latents)}
        unet = pipelines.unets.crosswkv
        embeds = torch.randn(2, length, unet.config.cross_attention_dim, device=unet.device, dtype=unet.dtype)
        if case.direction == SCAN:
            return {STATE: lambda: pipelines.scan(embeds)}
        return dict(pipelines.steps(size, embeds))

    def timed(self, calls: dict[str, Call]) -> dict[str, Row]:
        """Sides take turns, after a warm-up; of slow calls, whole images too, the first counts."""
        times = take_turns(calls, self.stopwatch, 1, 0)
        mean_seconds = 1e-3 * sum(map(sum, times.values())) / len(calls)
        slow = mean_seconds > SLOW_SECONDS
        if mean_seconds <= ONCE_SECONDS:
            more = take_turns(calls, self.stopwatch, 1 if slow else self.config.rounds, SECONDS)
            times = {side: times[side] + more[side] for side in calls} if slow else more
        return {
            side: {key: significant(value) for key, value in summarize(of)._asdict().items()} | {"warm_up": not slow}
            for side, of in times.items()
        }

    def peak(self, call: Call, median_ms: float) -> Row:
        """In a call of its own; on a CPU, where finding it takes a profiler, not of a slow one."""
        if self.device.type == "cpu" and median_ms > 3e3 * SLOW_SECONDS:
            return {}
        return {"peak_bytes": peak_memory(call, self.device), "peak_bytes_by": PEAK_MEMORY_BY[self.device.type]}

    def too_much(self, case: Case, flops: dict[str, int]) -> Row | None:
        """Why a part is not measured: memory, or time, both from what a smaller size took; None if it is."""
        smaller = self.measured_below(case)
        if not smaller:
            return None
        known = self.measured_below(case, "peak_bytes")
        if self.device.type == "cpu" and known:
            needed, free = max(row["peak_bytes"] * pixels_over(case, row) for row in known), free_memory()
            if needed > LARGEST_SHARE_OF_MEMORY * free:
                reason = f"would need about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
                return {"not_run": reason, "because": "memory"}
        growth = [
            flops[row["implementation"]] / row["flops"] if "flops" in row else pixels_over(case, row)
            for row in smaller
        ]
        seconds = 1e-3 * max(x * row["median_ms"] for x, row in zip(growth, smaller, strict=True))
        reason = f"one {case.direction} would take about {seconds:.3g} s"
        if seconds > LONGEST_SECONDS:
            return {"not_run": reason, "because": "time"}
        lengths = FEW_LENGTHS[:1] if seconds > ONCE_SECONDS else FEW_LENGTHS
        if case.direction == STEP and seconds > SLOW_SECONDS and case.text_tokens not in lengths:
            which = " and ".join(map(str, lengths))
            return {"not_run": f"{reason}: measured at {which} tokens alone", "because": "time"}
        return None

    def measured_below(self, case: Case, what: str = "median_ms") -> list[Row]:
        """The rows of the same part at the largest smaller size that tell `what`, if any."""
        if case.direction not in (STEP, DECODE):
            return []
        for size in sorted((size for size in self.sizes if size < case.width), reverse=True):
            other = replace(case, width=size, tokens=(size // VAE_FACTOR) ** 2)
            rows = [self.file.find(other, side, self.about) for side in sides_of(case.direction)]
            measured = [row for row in rows if row is not None and what in row]
            if measured:
                return measured
        return []


def pixels_over(case: Case, row: Row) -> float:
    """How many times the pixels of a row's case this one has."""
    return float(case.width**2 / row["width"] ** 2)


def sides_of(part: str) -> tuple[str, ...]:
    """Text encoder and VAE are the same for both."""
    return {TEXT: (TEXT,), DECODE: (DECODE,), SCAN: (STATE,)}.get(part, SIDES)


def measure(config: BenchmarkConfig) -> None:
    """Measure what the rows of this machine, `config.rows_path`, lack; rows of others there are kept."""
    Measurement(config).run()
    MemoryMeasurement(config).run()
