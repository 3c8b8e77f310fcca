"""Run Diffusers' own tests with the stock U-Net and with ours; write rows and a page, fail on unexplained failures.

git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers
python scripts/run_diffusers_tests.py diffusers [--only unet_2d_condition lora]
"""

import argparse
import sys
from pathlib import Path

from diffusers_crosswkv.evaluation.diffusers_tests import FILES, compare_all, unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of Diffusers' repository")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="files whose path has one of these")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/diffusers_tests"))
    arguments = parser.parse_args()
    files = [file for file in FILES if any(text in file for text in arguments.only)]
    try:
        results = compare_all(arguments.checkout, arguments.output_dir, files)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    count = sum(len(unexplained(result)) for result in results)
    print(f"{count} tests pass with the stock class and fail with ours without a reason")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
