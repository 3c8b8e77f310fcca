"""Read held-out scenes, clean, blurred and noisy, with the judge and with a CNN trained for it; print a table.

python scripts/measure_judge.py [--rows runs/judge.jsonl]
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from diffusers_crosswkv.data.scenes import GRIDS
from diffusers_crosswkv.environment import environment
from diffusers_crosswkv.evaluation.judge_accuracy import measure_judge
from diffusers_crosswkv.evaluation.scene_cnn import train_scene_cnn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", nargs="+", type=int, choices=sorted(GRIDS), default=sorted(GRIDS))
    parser.add_argument("--count", type=int, default=1000, help="pictures per row")
    parser.add_argument("--steps", type=int, default=800, help="training steps of the CNN")
    parser.add_argument("--rows", type=Path, help="write the rows there, as JSON lines")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.steps < 1:
        sys.exit("error: `--count` and `--steps` must be at least 1")
    torch.set_num_threads(1)
    if arguments.rows:
        arguments.rows.parent.mkdir(parents=True, exist_ok=True)
        arguments.rows.write_text("", encoding="utf-8")
    print("resolution  blur  noise   judge     CNN  agree")
    for resolution in arguments.resolutions:
        cnn = train_scene_cnn(resolution, arguments.steps)
        for row in measure_judge(cnn, resolution, arguments.count):
            shares = "  ".join(f"{x:6.1%}" for x in (row.judge, row.cnn, row.agreement))
            print(f"{resolution:10d}  {row.blur:4.1f}  {row.noise:5.2f}  {shares}")
            if arguments.rows:
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(row) | environment(torch.device("cpu"))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
