"""What the commands of all benchmarks have in common: arguments, threads, where rows go."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .command import run_command
from .kernel_benchmark import DTYPES, BenchmarkConfig


def benchmark_parser(description: str | None, name: str, quick: str, dtype: str) -> argparse.ArgumentParser:
    """The arguments of the benchmark whose rows lie in `benchmarks/<name>`, those of quick runs in `runs/<name>`.

    Args:
        quick, dtype: what these two do, for `--help`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(name=name)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, xpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help=dtype)
    parser.add_argument("--quick", action="store_true", help=f"{quick}, into runs/{name}")
    parser.add_argument("--output-dir", type=Path, help=f"benchmarks/{name} by default")
    parser.add_argument("--repetitions", type=int, help="rounds at most; 20, or 5 if quick, by default")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    return parser


def parse_benchmark(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments with `output_dir` filled in; the threads are set. Ends the process if there are none."""
    arguments = parser.parse_args()
    arguments.output_dir = arguments.output_dir or Path("runs" if arguments.quick else "benchmarks", arguments.name)
    if arguments.threads is not None and arguments.threads < 1:
        sys.exit(f"error: `--threads` must be at least 1, got {arguments.threads}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def run_benchmark(
    parser: argparse.ArgumentParser,
    measure: Callable[[BenchmarkConfig], object],
    write_report: Callable[[Path], str],
) -> int:
    """Parse, measure, write the page and print it; the exit status of a command."""
    arguments = parse_benchmark(parser)
    folder = arguments.output_dir

    def work() -> None:
        config = BenchmarkConfig(
            folder, arguments.device, arguments.dtype, quick=arguments.quick, repetitions=arguments.repetitions
        )
        measure(config)
        print(write_report(folder))

    return run_command(work)
