"""Measure images as the ADM suite does (FID, sFID, IS, precision, recall), and KID, CLIP score and CMMD.

    python scripts/evaluate.py --samples images --reference VIRTUAL_imagenet256_labeled.npz --output_dir runs/mine
    python scripts/evaluate.py --model runs/photos --prompts_file prompts.txt --reference photos --output_dir runs/mine
    python scripts/evaluate.py --protocol cifar10 --model MODEL --reference cifar10/train   # as the paper does
    torchrun --nproc_per_node 8 scripts/evaluate.py ...                               # the same, on 8 accelerators

Samples and references are folders of images or .npz batches of the ADM suite; with --model, samples are made first. An
interrupted run goes on by the same command. Rows go to results.jsonl in the output folder; docs/evaluation.md says
what a figure can be compared with.
"""

import argparse
import dataclasses
import sys
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path

from accelerate import PartialState

from diffusers_crosswkv.evaluation.metrics import (
    ADM_METRICS,
    METRICS,
    PAPER_METRICS,
    PROTOCOLS,
    EvaluationConfig,
    SampleFacts,
    SamplingConfig,
    check_weights,
    evaluate,
    fill_in,
    make_samples,
    pipeline_identity,
    protocol_prompts,
    read_facts,
    read_image_prompts,
    write_image_prompts,
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
OF_PROTOCOL = ("scheduler", "steps", "num_samples", "height", "width")  # of samples that are made
PROMPTS = "prompts.txt"
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
    if arguments.protocol is not None:
        take_from_protocol(arguments)
    prompts = prompts_of(arguments)
    check_arguments(arguments, len(prompts))
    config = EvaluationConfig(
        samples=arguments.samples or arguments.output_dir / "samples",
        output_dir=arguments.output_dir,
        metrics=tuple(arguments.metrics or (PAPER_METRICS if arguments.protocol and prompts else ADM_METRICS)),
        num_samples=arguments.num_samples,
        reference=arguments.reference,
        reference_resize=arguments.reference_resize,
        prompts=scored_prompts(arguments, prompts),
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


def take_from_protocol(arguments: argparse.Namespace) -> None:
    """Fill in what the protocol fixes.

    Raises:
        ValueError: something else was given.
    """
    given = {"num_prompts": arguments.num_prompts}
    if arguments.reference is not None and arguments.reference.is_dir():
        given["reference_resize"] = arguments.reference_resize
    if arguments.model is not None:
        scheduler = scheduler_class(arguments.scheduler)
        given |= {name: getattr(arguments, name) for name in OF_PROTOCOL}
        given["scheduler"] = scheduler and scheduler.__name__
    vars(arguments).update(fill_in(arguments.protocol, given))
    if arguments.output_dir is None:
        arguments.output_dir = Path("runs/evaluation", arguments.protocol)


def prompts_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """A file's; else, for samples of a protocol, captions of its data set.

    Raises:
        ValueError: there is nothing of the kind at the place that was named, or it was named for nothing.
    """
    if arguments.model is not None and arguments.protocol is not None and arguments.prompts_file is None:
        return protocol_prompts(arguments.protocol, arguments.captions_from or arguments.reference)
    if arguments.captions_from is not None:
        raise ValueError(
            "--captions_from must come with --model and --protocol and without --prompts_file, for it says what "
            "prompts are made of; leave it out."
        )
    return () if arguments.prompts_file is None else read_image_prompts(arguments.prompts_file)


def scored_prompts(arguments: argparse.Namespace, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the first images; a protocol's number of them is had by repetition, as the samples have theirs."""
    if arguments.model is not None and arguments.protocol is not None:
        return tuple(islice(cycle(prompts), arguments.num_prompts))
    return prompts[: arguments.num_prompts or arguments.num_samples]


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
    if arguments.output_dir is None:
        raise ValueError("--output_dir must name a folder for samples, features and rows, got none; give one.")
    counted = arguments.protocol is None and arguments.num_prompts is not None
    if counted and not 1 <= arguments.num_prompts <= num_prompts:
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
    facts = make_samples(
        config,
        measured.samples,
        named,
        lambda: load_pipeline(model)[0],
        state,
        lambda facts, size: measured.check_samples(config.num_samples, facts, size),
    )
    if arguments.prompts_file is None and state.is_main_process:
        write_image_prompts(arguments.output_dir / PROMPTS, prompts)
    return facts


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
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help=", ".join(METRICS))
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="the paper's: fills in what it fixes, refuses other values"
    )
    parser.add_argument(
        "--prompts_file", type=Path, help="a prompt per line, none empty; image i has line i modulo their number"
    )
    parser.add_argument(
        "--captions_from",
        type=Path,
        metavar="FOLDER",
        help="of the names or attributes that a protocol's prompts are made of; the reference's by default",
    )
    parser.add_argument("--num_prompts", type=int, help="how many of them the CLIP scores take; all by default")
    parser.add_argument(
        "--output_dir", type=Path, help="samples, features and results.jsonl; a protocol's is runs/evaluation/PROTOCOL"
    )
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
