"""Word problems of groups and regular languages: trained to length 16, tested to 256; rows, plot and page.

    python scripts/state_tracking.py --tasks s5_swaps --layers 1          # the first table of the page
    python scripts/state_tracking.py [--tasks ...] [--arms ...] [--layers ...] [--seeds ...] [--jobs 8]

All trainings are some hundreds, each of a minute or so on a CPU core; those that have a row are not run again.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.evaluation.command import run_command
from diffusers_crosswkv.state_tracking.automata import TASKS
from diffusers_crosswkv.state_tracking.cells import ARMS, QUICK, setup_of
from diffusers_crosswkv.state_tracking.report import write_report
from diffusers_crosswkv.state_tracking.suite import LAYERS, ROWS, SEEDS, cells_of, run_suite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS)
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--layers", nargs="+", type=int, choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one CPU thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps, into runs/state_tracking")
    parser.add_argument("--output-dir", type=Path, help="benchmarks/state_tracking by default")
    parser.add_argument("--report-only", action="store_true", help="from the rows that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.output_dir or Path("runs" if arguments.quick else "benchmarks", "state_tracking")
    cells = cells_of(arguments.tasks, arguments.arms, arguments.layers, arguments.seeds)

    def work() -> None:
        if not arguments.report_only:
            run_suite(folder / ROWS, cells, arguments.jobs, (lambda _: QUICK) if arguments.quick else setup_of)
        print(write_report(folder))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
