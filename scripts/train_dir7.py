"""Train or fine-tune DIR-7 on captioned images, alone or under `accelerate launch`.

    python scripts/train_dir7.py --model runs/quickstart/pipeline --data photos --output_dir runs/photos
    python scripts/train_dir7.py --from_scratch dir7_tiny --preset tiny --data scenes:16 --output_dir runs/scenes
    accelerate launch --config_file scripts/accelerate/multi_gpu.yaml scripts/train_dir7.py ... --preset lora

--dry_run says what a training would take. Ctrl-C stops and saves; the same command goes on. docs/training.md explains
every setting.
"""

import sys

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from diffusers_crosswkv.finetuning import finetune, parse_settings, try_out
from diffusers_crosswkv.training import OutOfMemory

EXPLAINED = (OSError, ValueError, ImportError, FloatingPointError, OutOfMemory, HfHubHTTPError, OfflineModeIsEnabled)


def main() -> int:
    try:
        config, dry_run = parse_settings(sys.argv[1:])
        report = try_out(config) if dry_run else finetune(config)
    except KeyboardInterrupt as stopped:
        print(f"{stopped or 'Stopped.'} Run the same command to go on.")
        return 130
    except EXPLAINED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if report is not None:
        print(report)
    return 1 if dry_run and report is not None and report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
