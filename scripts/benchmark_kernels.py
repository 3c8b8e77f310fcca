"""Time kernels and layers beside what they would replace; write rows, plots and a page, print one table.

    python scripts/benchmark_kernels.py [--device cuda] [--only layer text] [--quick]

What has been measured with the same code, machine and versions is kept; Ctrl-C stops, the same command goes on.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.kernel_benchmark import DTYPES, SECONDS, Benchmark, BenchmarkConfig
from diffusers_crosswkv.evaluation.kernel_cases import KINDS
from diffusers_crosswkv.evaluation.kernel_report import run_tables, write_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, xpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="float32 on a CPU, bfloat16 on a GPU by default")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--quick", action="store_true", help="few shapes, few repetitions, into runs/kernels")
    parser.add_argument("--again", action="store_true", help="measure what has been measured too")
    parser.add_argument("--output-dir", type=Path, help="benchmarks/kernels by default")
    parser.add_argument("--repetitions", type=int, help="rounds at most; 20, or 5 if quick, by default")
    parser.add_argument("--seconds", type=float, help=f"of the whole run, by default {SECONDS}")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    arguments = parser.parse_args()
    folder = arguments.output_dir or Path("runs/kernels" if arguments.quick else "benchmarks/kernels")
    if arguments.threads is not None and arguments.threads < 1:
        sys.exit(f"error: `--threads` must be at least 1, got {arguments.threads}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        config = BenchmarkConfig(
            folder,
            arguments.device,
            arguments.dtype,
            tuple(arguments.only),
            quick=arguments.quick,
            again=arguments.again,
            repetitions=arguments.repetitions,
            seconds=arguments.seconds,
        )
        benchmark = Benchmark(config)
        count = benchmark.run()
        write_report(folder)
        print(run_tables(config.rows_path, benchmark.about, config.kinds))
        print(f"\n{count} cases measured now; rows, plots and a page are in {folder}")
    except KeyboardInterrupt:
        print("Stopped. Run the same command to go on.")
        return 130
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
