"""Time an image of a whole pipeline, softmax beside DIR-7, with memory and FLOPs; write rows, plots and page.

python scripts/benchmark_pipeline.py [--device cuda] [--quick]
"""

import sys

from diffusers_crosswkv.efficiency.pipeline_benchmark import measure
from diffusers_crosswkv.efficiency.pipeline_report import write_report
from diffusers_crosswkv.evaluation.benchmark_command import benchmark_parser, run_benchmark


def main() -> int:
    parser = benchmark_parser(
        __doc__,
        "pipeline",
        quick="a tiny U-Net, two sizes, two lengths",
        dtype="of weights and images; float32 on a CPU, bfloat16 on a GPU by default",
    )
    return run_benchmark(parser, measure, write_report)


if __name__ == "__main__":
    sys.exit(main())
