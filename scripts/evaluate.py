"""Measure images as the ADM suite does (FID, sFID, IS, precision, recall), and KID, CLIP score and CMMD.

    python scripts/evaluate.py --samples images --reference VIRTUAL_imagenet256_labeled.npz
    python scripts/evaluate.py --model runs/photos --prompts_file prompts.txt --num_samples 10000 --scheduler DDPM \\
        --steps 250 --reference cifar10/train --protocol cifar10 --output_dir runs/evaluation/cifar10
    torchrun --nproc_per_node 8 scripts/evaluate.py ...            # the same, on 8 accelerators

Samples and references are folders of images or .npz batches of the ADM suite; with --model, samples are made first. An
interrupted run goes on by the same command. Rows go to results.jsonl in the output folder; docs/evaluation.md says
what a figure can be compared with.
"""

import argparse
import dataclasses
import sys
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from diffusers_crosswkv.evaluation.metrics import (
    ADM_METRICS,
    METRICS,
    PROTOCOLS,
    EvaluationConfig,
    SampleFacts,
    SamplingConfig,
    check_weights,
    evaluate,
    make_samples,
    pipeline_identity,
    read_facts,
    read_image_prompts,
)
from diffusers_crosswkv.generation import ModelConfig, load_pipeline
from diffusers_crosswkv.generation.loading import choose_dtype, download, scheduler_class

OF_MAKING = {  # and their defaults
    "num_samples": 10_000,
    "seed": 0,
    "sampling_batch_size": 1,
    "height": None,
    "width": None,
    "revision": None,
    "dtype": "auto",
}
PATIENCE = timedelta(days=1)  # of processes that wait for what the first one computes alone


def main() -> int:
    arguments = make_parser().parse_args()
    state = PartialState(cpu=arguments.device == "cpu", timeout=PATIENCE)
    try:
        rows = run(arguments, state)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.", file=sys.stderr)
        return 130
    finally:
        state.destroy_process_group()
    for row in rows:
        print(f"{row['value']:.5g}  {row['name']}")
    return 0


def run(arguments: argparse.Namespace, state: PartialState) -> list[dict]:
    prompts = () if arguments.prompts_file is None else read_image_prompts(arguments.prompts_file)
    check_arguments(arguments, len(prompts))
    config = EvaluationConfig(
        samples=arguments.samples or arguments.output_dir / "samples",
        output_dir=arguments.output_dir,
        metrics=tuple(arguments.metrics),
        num_samples=arguments.num_samples,
        reference=arguments.reference,
        reference_resize=arguments.reference_resize,
        prompts=prompts[: arguments.num_prompts or arguments.num_samples],
        protocol=arguments.protocol,
        inception_weights=arguments.inception_weights,
        batch_size=arguments.batch_size,
        **{
            name: value
            for name in ("clip_model", "multilingual_clip_model", "cmmd_model")
            if (value := getattr(arguments, name)) is not None
        },
    )
    config.check()
    if arguments.model is None:
        facts = stated_facts(arguments)
        check_weights(config, state)
    else:
        facts = sample(arguments, prompts, config, state)
    return evaluate(dataclasses.replace(config, facts=facts), state)


def check_arguments(arguments: argparse.Namespace, num_prompts: int) -> None:
    """Refuse what would do nothing; fill in defaults.

    Raises:
        ValueError: so.
    """
    for name, default in OF_MAKING.items():
        if arguments.model is None and getattr(arguments, name) is not None:
            raise ValueError(f"--{name} must come with --model, for it says how samples are made; leave it out.")
        if arguments.model is not None and getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.num_prompts is not None and not 1 <= arguments.num_prompts <= num_prompts:
        raise ValueError(
            f"--num_prompts must be 1 to the number of prompts in --prompts_file ({num_prompts}), "
            f"got {arguments.num_prompts}."
        )


def stated_facts(arguments: argparse.Namespace) -> SampleFacts:
    """What samples.json beside the samples says, or else the arguments.

    Raises:
        ValueError: the two contradict each other.
    """
    sampler = scheduler_class(arguments.scheduler)
    stated = SampleFacts(sampler and sampler.__name__, arguments.steps, arguments.guidance_scale)
    made = read_facts(arguments.samples)
    if made is None:
        return stated
    for option, of_making, of_arguments in (
        ("scheduler", made.sampler, stated.sampler),
        ("steps", made.steps, stated.steps),
        ("guidance_scale", made.guidance, stated.guidance),
    ):
        if of_arguments is not None and of_arguments != of_making:
            raise ValueError(
                f"--{option} must be {of_making}, as samples.json in {arguments.samples} says, got {of_arguments}; "
                "leave it out."
            )
    return made


def sample(
    arguments: argparse.Namespace, prompts: tuple[str, ...], measured: EvaluationConfig, state: PartialState
) -> SampleFacts:
    config = SamplingConfig(
        prompts,
        arguments.num_samples,
        seed=arguments.seed,
        batch_size=arguments.sampling_batch_size,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        height=arguments.height,
        width=arguments.width,
    )
    config.check()
    model = ModelConfig(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=str(state.device),
        scheduler=arguments.scheduler,
    )
    model.check()
    check_weights(measured, state)
    with state.local_main_process_first():
        model, named = locate(model, state)
    return make_samples(
        config,
        measured.samples,
        named,
        lambda: load_pipeline(model)[0],
        state,
        lambda facts, size: measured.check_samples(config.num_samples, facts, size),
    )


def locate(model: ModelConfig, state: PartialState) -> tuple[ModelConfig, dict[str, str | None]]:
    """The folder in the place of an id on the Hub, and what tells this pipeline from others: the commit or a hash."""
    scheduler = scheduler_class(model.scheduler)
    named = {
        "name": model.model,
        "dtype": str(choose_dtype(model.dtype, state.device)),
        "scheduler": scheduler and scheduler.__name__,
    }
    if Path(model.model).is_dir():
        return model, named | {"weights": pipeline_identity(Path(model.model))}
    folder = download(model)
    return dataclasses.replace(model, model=str(folder), revision=None), named | {"weights": f"commit:{folder.name}"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--samples", type=Path, help="a folder of images, or an .npz batch of the ADM suite")
    which.add_argument("--model", help="make the samples with this pipeline: a folder, or an id on the Hub")
    parser.add_argument("--reference", type=Path, help="what to compare with, like --samples")
    parser.add_argument(
        "--reference_resize", type=int, metavar="SIDE", help="crop and resize the reference as ADM does"
    )
    parser.add_argument("--metrics", nargs="+", default=ADM_METRICS, metavar="METRIC", help=", ".join(METRICS))
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), help="the paper's; what does not fit it is refused")
    parser.add_argument(
        "--prompts_file", type=Path, help="a prompt per line, none empty; image i has line i modulo their number"
    )
    parser.add_argument("--num_prompts", type=int, help="how many of them the CLIP scores take; all by default")
    parser.add_argument("--output_dir", type=Path, required=True, help="samples, features and results.jsonl")
    parser.add_argument("--batch_size", type=int, default=64, help="of the networks that measure")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    making = parser.add_argument_group(
        "samples: how to make them (with --model); the first three also say how they were made elsewhere"
    )
    making.add_argument("--scheduler", help="such as DDPM; the pipeline's own by default")
    making.add_argument("--steps", type=int, help="denoising steps; the pipeline's default if not given")
    making.add_argument("--guidance_scale", type=float)
    making.add_argument("--num_samples", type=int, help="10,000 if not given; more may be asked for later")
    making.add_argument("--seed", type=int, help="of the first image, 0 if not given; the next has the next")
    making.add_argument("--sampling_batch_size", type=int, help="1 if not given")
    making.add_argument("--height", type=int)
    making.add_argument("--width", type=int)
    making.add_argument("--revision", help="branch, tag or commit of the Hub's repository")
    making.add_argument("--dtype", help="float32, float16, bfloat16; by device if not given")
    weights = parser.add_argument_group("weights: downloaded when first used, or named here")
    weights.add_argument("--inception_weights", type=Path, metavar="FILE", help="torch-fidelity's .pth")
    weights.add_argument("--clip_model", metavar="MODEL", help="of clip_score: folder or id on the Hub")
    weights.add_argument("--multilingual_clip_model", metavar="MODEL", help="of clip_score_multilingual")
    weights.add_argument("--cmmd_model", metavar="MODEL")
    return parser


if __name__ == "__main__":
    sys.exit(main())
