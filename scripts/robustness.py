"""Prompts that training did not have, and the size of the states over training, sampling and length.

    python scripts/robustness.py [--arms state softmax] [--report-only]

Everything is kept in runs/robustness/<preset>; Ctrl-C stops and saves, the same command goes on.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.command import run_command
from diffusers_crosswkv.robustness.arms import ARMS, PRESETS
from diffusers_crosswkv.robustness.report import write_report
from diffusers_crosswkv.robustness.suite import run_arm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="one after the other")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/robustness"), help="trainings, kept")
    parser.add_argument("--report-dir", type=Path, help="rows, tables and plots; benchmarks/robustness by default")
    parser.add_argument("--report-only", action="store_true", help="from the rows that are there")
    arguments = parser.parse_args()
    folder = arguments.output_dir / arguments.preset
    torch.set_num_threads(1)  # so small models are slower with more

    def work() -> None:
        if not arguments.report_only:
            for arm in arguments.arms:
                run_arm(arm, arguments.preset, folder)
        usual = Path("benchmarks/robustness") if arguments.preset == "default" else folder / "report"
        print(write_report(arguments.preset, folder, arguments.report_dir or usual))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
