"""Train WKV-7 and softmax on Othello games, measure legal moves, probes and matches, write rows, plots and page.

    python scripts/othello.py [--preset small] [--mixers wkv7] [--lessons legal play next] [--report-only]

Trainings are kept in runs/othello/<preset>; Ctrl-C stops and saves, the same command goes on.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.command import run_command
from diffusers_crosswkv.othello.lessons import LESSONS
from diffusers_crosswkv.othello.report import write_report
from diffusers_crosswkv.othello.suite import DEFAULT_LESSONS, MIXERS, PRESETS, run_suite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/othello"), help="trainings, kept")
    parser.add_argument("--report-dir", type=Path, help="rows, plots and page; benchmarks/othello for `small`")
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    parser.add_argument("--lessons", nargs="+", choices=LESSONS, default=DEFAULT_LESSONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, xpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--report-only", action="store_true", help="from the rows that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.output_dir / arguments.preset
    report = arguments.report_dir or (Path("benchmarks/othello") if arguments.preset == "small" else folder / "report")

    def work() -> None:
        if not arguments.report_only:
            run_suite(PRESETS[arguments.preset], folder, arguments.mixers, arguments.lessons, arguments.device)
        print(write_report(folder, report))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
