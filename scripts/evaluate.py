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
    read_facts,
)
from diffusers_crosswkv.generation import ModelConfig, load_pipeline, read_prompts
from diffusers_crosswkv.generation.loading import scheduler_class


def main() -> int:
    arguments = make_parser().parse_args()
    state = PartialState(cpu=arguments.device == "cpu")
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
    prompts = () if arguments.prompts_file is None else read_prompts(arguments.prompts_file)
    config = EvaluationConfig(
        samples=arguments.samples or arguments.output_dir / "samples",
        output_dir=arguments.output_dir,
        metrics=tuple(arguments.metrics),
        reference=arguments.reference,
        reference_resize=arguments.reference_resize,
        prompts=prompts[: arguments.num_prompts or (arguments.num_samples if arguments.model else None)],
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
    check_weights(config, state)
    facts = stated_facts(arguments) if arguments.model is None else sample(arguments, prompts, state)
    return evaluate(dataclasses.replace(config, facts=facts), state)


def stated_facts(arguments: argparse.Namespace) -> SampleFacts:
    """What samples.json beside the samples says, or else the arguments."""
    sampler = scheduler_class(arguments.scheduler)
    stated = SampleFacts(sampler and sampler.__name__, arguments.steps, arguments.guidance_scale)
    return read_facts(arguments.samples) or stated


def sample(arguments: argparse.Namespace, prompts: tuple[str, ...], state: PartialState) -> SampleFacts:
    model = ModelConfig(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=str(state.device),
        scheduler=arguments.scheduler,
    )
    model.check()
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
    named = {name: getattr(arguments, name) for name in ("model", "revision", "dtype", "scheduler")}
    return make_samples(
        config, arguments.output_dir / "samples", named, lambda: load_pipeline(model)[0], state, arguments.protocol
    )


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
        "--prompts_file", type=Path, help="a prompt per line; image i has prompt i modulo their number"
    )
    parser.add_argument("--num_prompts", type=int, help="how many of them the CLIP scores take; all by default")
    parser.add_argument("--output_dir", type=Path, required=True, help="samples, features and results.jsonl")
    parser.add_argument("--batch_size", type=int, default=64, help="of the networks that measure")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    making = parser.add_argument_group("samples: how to make them, or how they were made elsewhere")
    making.add_argument("--scheduler", help="such as DDPM; the pipeline's own by default")
    making.add_argument("--steps", type=int, help="denoising steps; the pipeline's default if not given")
    making.add_argument("--guidance_scale", type=float)
    making.add_argument("--num_samples", type=int, default=10_000)
    making.add_argument("--seed", type=int, default=0, help="of the first image; the next has the next")
    making.add_argument("--sampling_batch_size", type=int, default=1)
    making.add_argument("--height", type=int)
    making.add_argument("--width", type=int)
    making.add_argument("--revision", help="branch, tag or commit of the Hub's repository")
    making.add_argument("--dtype", default="auto", help="float32, float16, bfloat16; auto: by device")
    weights = parser.add_argument_group("weights: downloaded when first used, or named here")
    weights.add_argument("--inception_weights", type=Path, metavar="FILE", help="torch-fidelity's .pth")
    weights.add_argument("--clip_model", metavar="MODEL", help="of clip_score: folder or id on the Hub")
    weights.add_argument("--multilingual_clip_model", metavar="MODEL", help="of clip_score_multilingual")
    weights.add_argument("--cmmd_model", metavar="MODEL")
    return parser


if __name__ == "__main__":
    sys.exit(main())
