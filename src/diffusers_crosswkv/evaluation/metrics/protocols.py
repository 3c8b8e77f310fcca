"""The paper's protocol for its data sets, and what is known of samples; what does not fit is refused, not measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image_sets import ImageSet
from .inception_figures import MANIFOLD_IMAGES

REFERENCE_METRICS = ("fid", "sfid", "precision", "recall", "kid", "cmmd")
PROMPT_METRICS = ("clip_score", "clip_score_multilingual")
METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", *PROMPT_METRICS, "cmmd")
ADM_METRICS = ("fid", "sfid", "is", "precision", "recall")
PAPER_METRICS = (*ADM_METRICS, "clip_score")


@dataclass(frozen=True)
class SampleFacts:
    """How samples were made; None where nobody said so.

    Args:
        sampler: the scheduler's class, such as `DDPMScheduler`.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        model: which pipeline: name, and commit of the Hub or hash of the folder.
        seed: of the first image.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    model: str | None = None
    seed: int | None = None

    def label(self) -> str:
        sampler = "sampler not stated" if self.sampler is None else self.sampler
        steps = "steps not stated" if self.steps is None else f"{self.steps} steps"
        guidance = "guidance not stated" if self.guidance is None else f"guidance {self.guidance:g}"
        return f"{sampler}, {steps}, {guidance}"


@dataclass(frozen=True)
class Protocol:
    """What the paper measures on a data set: 10,000 samples of 250 DDPM steps, CLIP score on 1,000 prompts.

    Args:
        side: of samples and reference, in pixels.
        reference: what to compare with.
        reference_images: how many there are. An `.npz` with statistics stands for its whole data set, however large
            that was: the file does not say.
        captions: what prompts are made of, see [`protocol_prompts`].
        reference_resize: see [`FolderImages`]; None where the data set has images of `side`.
    """

    side: int
    reference: str
    reference_images: int
    captions: str
    reference_resize: int | None = None
    num_samples: int = 10_000
    sampler: str = "DDPMScheduler"
    steps: int = 250
    num_prompts: int = 1_000

    def options(self) -> dict[str, Any]:
        """What it fixes, by the options of `scripts/evaluate.py`."""
        options = {
            "scheduler": self.sampler,
            "steps": self.steps,
            "num_samples": self.num_samples,
            "height": self.side,
            "width": self.side,
            "num_prompts": self.num_prompts,
            "reference_resize": self.reference_resize,
        }
        return {name: value for name, value in options.items() if value is not None}


PROTOCOLS = {
    "cifar10": Protocol(32, "CIFAR-10's training images", 50_000, "cifar10"),
    "celeba64": Protocol(64, "CelebA's images, the central square at 64 pixels", 202_599, "celeba", 64),
    "imagenet256": Protocol(256, "ADM's VIRTUAL_imagenet256_labeled.npz", 1_281_167, "imagenet"),
    "imagenet512": Protocol(512, "ADM's VIRTUAL_imagenet512.npz", 1_281_167, "imagenet"),
}


def fill_in(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options in `given` that the protocol `name` fixes, as it has them; None was not given.

    Raises:
        ValueError: one was given and is another; the message lists all of them.
    """
    fixed = {option: value for option, value in PROTOCOLS[name].options().items() if option in given}
    wrong = [
        f"--{option} must be {right}, got {given[option]}"
        for option, right in fixed.items()
        if given[option] not in (None, right)
    ]
    if wrong:
        raise ValueError(
            f"This is not the protocol {name}: {'; '.join(wrong)}. Leave that to --protocol, or measure without it."
        )
    return fixed


Mismatch = tuple[str, object, object]  # what, as it must be, as it is


def of_samples(name: str, count: int, facts: SampleFacts, size: tuple[int, int] | None = None) -> list[Mismatch]:
    """What the protocol `name` asks of samples; `size` is None where it is not known yet."""
    protocol = PROTOCOLS[name]
    asked: list[Mismatch] = [
        ("samples", protocol.num_samples, count),
        ("sampler", protocol.sampler, facts.sampler),
        ("steps", protocol.steps, facts.steps),
    ]
    return asked if size is None else [*asked, ("size of samples", (protocol.side, protocol.side), size)]


def of_reference(name: str, reference: ImageSet | None, num_prompts: int | None) -> list[Mismatch]:
    """What the protocol `name` asks of a reference and of the prompts of a CLIP score; None where there are none."""
    protocol = PROTOCOLS[name]
    asked: list[Mismatch] = []
    if reference is not None and len(reference):
        asked.append(("size of the reference", (protocol.side, protocol.side), reference.size))
        if not reference.statistics:
            asked.append(("reference images", protocol.reference_images, len(reference)))
        elif len(reference) != protocol.reference_images:  # as many as ADM's batches hold beside theirs
            asked.append(("reference images beside statistics", MANIFOLD_IMAGES, len(reference)))
    if num_prompts is not None:
        asked.append(("prompts of the CLIP score", protocol.num_prompts, num_prompts))
    return asked


def refuse(name: str, asked: list[Mismatch]) -> None:
    """
    Raises:
        ValueError: something is not as the protocol `name` asks; the message lists all of it.
    """
    wrong = [f"{what} must be {right}, got {found}" for what, right, found in asked if right != found]
    if wrong:
        raise ValueError(
            f"This is not the protocol {name}: {'; '.join(wrong)}. The reference is {PROTOCOLS[name].reference}. "
            "State what is known of samples made elsewhere (--scheduler, --steps), or measure without --protocol."
        )


def result_name(
    metric: str, samples: ImageSet, count: int, facts: SampleFacts, network_resize: str, reference: ImageSet | None
) -> str:
    """One line for people, which figures of different protocols do not share; [`SAME`] of rows has all the rest."""
    height, width = samples.size
    against = "" if reference is None else f", reference {Path(reference.name).name}, resize {reference.resize}"
    return (
        f"{metric}: {count} samples of {width} x {height}, resize {samples.resize}, {facts.label()}{against}, "
        f"network's resize {network_resize}"
    )
