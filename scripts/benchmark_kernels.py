"""Time kernels and layers beside what they would replace; write rows, plots and a page, print one table.

    python scripts/benchmark_kernels.py [--device cuda] [--only layer text] [--quick]

What has been measured with the same code, machine and versions is kept; Ctrl-C stops, the same command goes on.
"""

import sys

from diffusers_crosswkv.evaluation.benchmark_command import benchmark_parser, parse_benchmark
from diffusers_crosswkv.evaluation.kernel_benchmark import SECONDS, Benchmark, BenchmarkConfig
from diffusers_crosswkv.evaluation.kernel_cases import KINDS
from diffusers_crosswkv.evaluation.kernel_report import run_tables, write_report


def main() -> int:
    parser = benchmark_parser(
        __doc__,
        "kernels",
        quick="few shapes, few repetitions",
        dtype="float32 on a CPU, bfloat16 on a GPU by default",
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--again", action="store_true", help="measure what has been measured too")
    parser.add_argument("--seconds", type=float, help=f"of the whole run, by default {SECONDS}")
    arguments = parse_benchmark(parser)
    folder = arguments.output_dir
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
