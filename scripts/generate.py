"""Make images from prompts: a PNG and a JSON record per image, and a contact sheet of them all.

    python scripts/generate.py --model runs/quickstart/pipeline "a handwritten seven" "un tres escrito a mano"
    python scripts/generate.py --model user/name --prompts-file prompts.txt --num-images 4 --seed 7 --output-dir images
    python scripts/generate.py --from-json images/0000-seed7.json --output-dir again      # the same image again
    python scripts/generate.py --from-json images/0000-seed7.json --seed 8 --output-dir others     # all else equal

Image n of a prompt has the seed --seed + n, so an image is the same alone and among others. Any text-to-image
pipeline that Diffusers loads will do; prompt states need one of DIR-7.
"""

import argparse
import datetime
import random
import sys
from pathlib import Path

from diffusers_crosswkv.generation import (
    ImageConfig,
    ModelConfig,
    RunConfig,
    compare,
    generate,
    read_prompts,
    read_record,
)


def main() -> int:
    try:
        arguments = parse_arguments(sys.argv[1:])
        recorded = None if arguments.from_json is None else read_record(arguments.from_json)
        run = run_config(arguments)
        print(f"images go to {run.output_dir}", flush=True)
        report = generate(run)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the images that were finished are kept.")
        return 130
    for warning in report.warnings:
        print(f"warning: {warning}")
    for name, path in (("contact sheet", report.sheet), ("prompt state", report.prompt_state)):
        if path is not None:
            print(f"{name}: {path}")
    print(f"{len(report.images)} image{'s' * (len(report.images) != 1)} in {run.output_dir}")
    if recorded is not None and len(report.records) == 1:
        print(compare(recorded, report.records[0]))
    return 0


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Arguments; what is not given is taken from the record named by --from-json, if there is one."""
    parser = make_parser()
    record_path = parser.parse_known_args(argv)[0].from_json
    if record_path is not None:
        record = read_record(record_path)
        parser.set_defaults(**vars(record.model), **vars(record.image))
    arguments = parser.parse_args(argv)
    if arguments.model is None:
        parser.error("--model (or --from-json) is needed: a pipeline's folder, or its id on the Hub")
    return arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--prompts-file", type=Path, help="UTF-8 text, one prompt per line")
    parser.add_argument("--from-json", type=Path, metavar="IMAGE.json", help="the record of an image to make again")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="a pipeline's folder, or its id on the Hub")
    model.add_argument("--revision", help="branch, tag or commit on the Hub")
    model.add_argument("--variant", help="of the weight files, such as fp16")
    model.add_argument("--dtype", default="auto", help="float32, float16, bfloat16; auto: by device")
    model.add_argument("--device", default="auto", help="such as cpu or cuda:1; auto: the accelerator if there is one")
    model.add_argument("--scheduler", help="a scheduler's class, such as EulerDiscrete")
    model.add_argument("--lora", dest="loras", action="append", metavar="LORA", help="file, folder or id; repeatable")
    model.add_argument("--lora-scale", dest="lora_scales", type=float, action="append", metavar="SCALE")
    image = parser.add_argument_group("image (what is not given is the pipeline's own default)")
    image.add_argument("--negative-prompt")
    image.add_argument("--seed", type=int, help="of each prompt's first image; random if not given")
    image.add_argument("--num-images", type=int, default=1, help="per prompt")
    image.add_argument("--steps", dest="num_inference_steps", type=int, metavar="STEPS")
    image.add_argument("--guidance-scale", type=float)
    image.add_argument("--guidance-rescale", type=float)
    image.add_argument("--height", type=int)
    image.add_argument("--width", type=int)
    image.add_argument("--prompt-state", metavar="FILE", help="a state that prompts continue, or instead of them")
    image.add_argument("--prompt-state-index", type=int, help="which state, if the file holds several")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, help="default: a new folder runs/images/<date and time>")
    output.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")
    output.add_argument(
        "--grid", action=argparse.BooleanOptionalAction, help="contact sheet; default: of several images"
    )
    output.add_argument("--save-prompt-state", type=Path, metavar="FILE", help="write the prompts' states")
    return parser


def run_config(arguments: argparse.Namespace) -> RunConfig:
    prompts = tuple(arguments.prompts) + (read_prompts(arguments.prompts_file) if arguments.prompts_file else ())
    if not prompts and getattr(arguments, "prompt", None) is not None:  # of the record
        prompts = (arguments.prompt,)
    return RunConfig(
        model=ModelConfig(
            model=arguments.model,
            revision=arguments.revision,
            variant=arguments.variant,
            dtype=arguments.dtype,
            device=arguments.device,
            scheduler=arguments.scheduler,
            loras=tuple(arguments.loras or ()),
            lora_scales=tuple(arguments.lora_scales or ()),
        ),
        prompts=prompts,
        image=ImageConfig(
            seed=random.getrandbits(32) if arguments.seed is None else arguments.seed,
            negative_prompt=arguments.negative_prompt,
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            guidance_rescale=arguments.guidance_rescale,
            height=arguments.height,
            width=arguments.width,
            prompt_state=arguments.prompt_state,
            prompt_state_index=arguments.prompt_state_index,
        ),
        output_dir=arguments.output_dir or Path("runs/images", f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"),
        num_images_per_prompt=arguments.num_images,
        overwrite=arguments.overwrite,
        grid=arguments.grid,
        save_prompt_state=arguments.save_prompt_state,
    )


if __name__ == "__main__":
    sys.exit(main())
