"""Time a denoising step at prompts of 16 to 4,096 tokens, softmax beside a prompt state; write rows, plot and page.

python scripts/benchmark_prompt_length.py [--device cuda] [--quick]
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.kernel_benchmark import DTYPES, BenchmarkConfig
from diffusers_crosswkv.evaluation.prompt_length import measure
from diffusers_crosswkv.evaluation.prompt_length_report import write_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, xpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="float32 on a CPU, bfloat16 on a GPU by default")
    parser.add_argument("--quick", action="store_true", help="one small U-Net, two lengths, into runs/prompt_length")
    parser.add_argument("--output-dir", type=Path, help="benchmarks/prompt_length by default")
    parser.add_argument("--repetitions", type=int, help="rounds at most; 20, or 5 if quick, by default")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    arguments = parser.parse_args()
    folder = arguments.output_dir or Path("runs/prompt_length" if arguments.quick else "benchmarks/prompt_length")
    if arguments.threads is not None and arguments.threads < 1:
        sys.exit(f"error: `--threads` must be at least 1, got {arguments.threads}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        config = BenchmarkConfig(
            folder, arguments.device, arguments.dtype, quick=arguments.quick, repetitions=arguments.repetitions
        )
        measure(config)
        print(write_report(folder))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
