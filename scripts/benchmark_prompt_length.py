"""Time a denoising step at prompts of 16 to 4,096 tokens, softmax beside a prompt state; write rows, plot and page.

python scripts/benchmark_prompt_length.py [--device cuda] [--quick]
"""

import sys

from diffusers_crosswkv.evaluation.benchmark_command import benchmark_parser, run_benchmark
from diffusers_crosswkv.evaluation.prompt_length import measure
from diffusers_crosswkv.evaluation.prompt_length_report import write_report


def main() -> int:
    parser = benchmark_parser(
        __doc__,
        "prompt_length",
        quick="one small U-Net, two lengths",
        dtype="float32 on a CPU, bfloat16 on a GPU by default",
    )
    return run_benchmark(parser, measure, write_report)


if __name__ == "__main__":
    sys.exit(main())
