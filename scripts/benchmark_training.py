"""Time a training step of a U-Net, softmax beside CrossWKV, with peak memory; write rows, plot and page.

python scripts/benchmark_training.py [--device cuda] [--quick]
"""

import sys

from diffusers_crosswkv.evaluation.benchmark_command import benchmark_parser, run_benchmark
from diffusers_crosswkv.evaluation.training_speed import measure
from diffusers_crosswkv.evaluation.training_speed_report import write_report


def main() -> int:
    parser = benchmark_parser(
        __doc__,
        "training_speed",
        quick="one small U-Net, one length",
        dtype="of the steps; all that are measured there by default",
    )
    return run_benchmark(parser, measure, write_report)


if __name__ == "__main__":
    sys.exit(main())
