"""Train DIR-7 on real handwritten digits, save it, load it in a new process, draw digits in four languages.

    python scripts/quickstart.py [--output-dir runs/quickstart] [--steps 1200]

Ctrl-C stops and saves; the same command goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.hub import save_facts
from diffusers_crosswkv.quickstart import (
    PIPELINE_DIR,
    REPORT_FILE,
    describe,
    draw_digits,
    model_facts,
    train_digits,
    write_report,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=1200, help="training steps")
    parser.add_argument("--num-images", type=int, default=400, help="digits to generate, a multiple of 40")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw-only", action="store_true", help="use the pipeline that is there")
    parser.add_argument("--training-seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; at this size two gain nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        return draw(arguments) if arguments.draw_only else train_and_draw(arguments)
    except KeyboardInterrupt as stopped:
        print(f"{stopped or 'Stopped.'} Run the same command to go on.")
        return 130


def train_and_draw(arguments: argparse.Namespace) -> int:
    try:
        pipeline_dir, seconds = train_digits(arguments.output_dir, arguments.steps, arguments.seed)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    print(f"trained in {seconds:.1f} s, pipeline in {pipeline_dir}; drawing in a new process", flush=True)
    new_process = [sys.executable, *sys.argv, "--draw-only", "--training-seconds", f"{seconds:.2f}"]
    return subprocess.run(new_process, check=False).returncode


def draw(arguments: argparse.Namespace) -> int:
    folder = arguments.output_dir
    try:
        report = draw_digits(
            folder / PIPELINE_DIR,
            folder / "digits.png",
            arguments.num_images,
            arguments.seed,
            arguments.training_seconds,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_report(report, folder / REPORT_FILE)
    save_facts(model_facts(folder), folder / "facts.json")
    print(describe(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
