"""Train the fusions and softmax on scenes, hold their pictures to the captions, write the report.

    python scripts/run_alignment.py --preset small [--jobs 2] [--arms softmax state] [--report-only]

Everything is kept in runs/alignment/<preset>; Ctrl-C stops and saves, the same command goes on. Only the text encoder,
a minute or two at the beginning, starts again.
"""

import argparse
import sys
from pathlib import Path

from diffusers_crosswkv.alignment.report import write_report
from diffusers_crosswkv.alignment.suite import ARMS, PRESETS, RECALLS, run_jobs
from diffusers_crosswkv.evaluation.command import run_command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/alignment"), help="trainings, kept")
    parser.add_argument("--report-dir", type=Path, help="rows, tables and plots; beside the trainings by default")
    parser.add_argument(
        "--arms", nargs="+", choices=[*ARMS, *RECALLS], metavar="ARM", help=f"of {', '.join((*ARMS, *RECALLS))}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="of the preset's seeds")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one CPU thread each")
    parser.add_argument("--report-only", action="store_true", help="from the rows that are there")
    arguments = parser.parse_args()
    folder = arguments.output_dir / arguments.preset

    def work() -> None:
        failure = None
        if not arguments.report_only:
            try:
                run_jobs(arguments.preset, folder, arguments.arms, arguments.seeds, arguments.jobs)
            except RuntimeError as error:
                failure = error
        print(write_report(arguments.preset, folder, arguments.report_dir or folder / "report"))
        if failure:
            sys.exit(f"error: {failure}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
