"""Time a training step of a U-Net, softmax beside CrossWKV, with peak memory; write rows, plot and page.

python scripts/benchmark_training.py [--device cuda] [--quick]
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.kernel_benchmark import DTYPES, BenchmarkConfig
from diffusers_crosswkv.evaluation.training_speed import measure
from diffusers_crosswkv.evaluation.training_speed_report import write_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, xpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the steps; all that are measured there by default")
    parser.add_argument("--quick", action="store_true", help="one small U-Net, one length, into runs/training_speed")
    parser.add_argument("--output-dir", type=Path, help="benchmarks/training_speed by default")
    parser.add_argument("--repetitions", type=int, help="rounds at most; 20, or 5 if quick, by default")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    arguments = parser.parse_args()
    folder = arguments.output_dir or Path("runs/training_speed" if arguments.quick else "benchmarks/training_speed")
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
