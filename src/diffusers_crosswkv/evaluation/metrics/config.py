"""What an evaluation is asked for, and what of it can be refused before work starts."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .extractors import CLIP_MODEL, CMMD_MODEL, MULTILINGUAL_CLIP_MODEL
from .features import BATCH_SIZE
from .image_sets import FolderImages, ImageSet
from .inception_figures import GAUSSIANS, SIZES
from .manifolds import NEIGHBOURS
from .npz_images import STATISTICS, open_images
from .prompts import check_english
from .protocols import (
    METRICS,
    PROMPT_METRICS,
    PROTOCOLS,
    REFERENCE_METRICS,
    SampleFacts,
    of_reference,
    of_samples,
    refuse,
)
from .sampling import image_name

MINIMA = {"fid": 2, "sfid": 2, "kid": 2, "precision": NEIGHBOURS + 1, "recall": NEIGHBOURS + 1}  # images on a side

Size = tuple[int, int]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and with what.

    Args:
        samples: a folder of images or an `.npz` batch.
        num_samples: of a folder that [`make_samples`] filled: its first so many images and nothing else that lies
            there. None: all images.
        output_dir: for features and [`RESULTS`]; the same one goes on where an interrupted run stopped.
        metrics: some of [`METRICS`].
        reference: like `samples`; None where no metric compares.
        reference_resize: see [`FolderImages`].
        facts: how the samples were made.
        prompts: of the first images, in their order, for the CLIP scores.
        protocol: one of [`PROTOCOLS`].
        inception_weights: see [`find_inception_weights`].
        clip_model, multilingual_clip_model, cmmd_model: folders or ids on the Hub.
        batch_size: images per call of a network.
    """

    samples: Path
    output_dir: Path
    metrics: tuple[str, ...]
    num_samples: int | None = None
    reference: Path | None = None
    reference_resize: int | None = None
    facts: SampleFacts = field(default_factory=SampleFacts)
    prompts: tuple[str, ...] = ()
    protocol: str | None = None
    inception_weights: Path | None = None
    clip_model: str = CLIP_MODEL
    multilingual_clip_model: str = MULTILINGUAL_CLIP_MODEL
    cmmd_model: str = CMMD_MODEL
    batch_size: int = BATCH_SIZE

    def check(self) -> None:
        """Refuse what can be refused without samples.

        Raises:
            FileNotFoundError: there is no such reference.
            ValueError: an argument does not fit, or the reference cannot be read; the message says what would do.
        """
        for what, values, known in (("metrics", self.metrics, METRICS), ("protocol", [self.protocol], PROTOCOLS)):
            unknown = [value for value in values if value is not None and value not in known]
            if unknown:
                raise ValueError(f"`{what}` must be of {', '.join(known)}, got {unknown[0]!r}.")
        if not self.metrics:
            raise ValueError(f"`metrics` must name one or more of {', '.join(METRICS)}, got none.")
        comparing = [name for name in self.metrics if name in REFERENCE_METRICS]
        if comparing and self.reference is None:
            raise ValueError(f"{', '.join(comparing)} must have a reference to compare with (--reference), got none.")
        scoring = [name for name in self.metrics if name in PROMPT_METRICS]
        if scoring and not self.prompts:
            raise ValueError(f"{', '.join(scoring)} must have the prompts of the images (--prompts_file), got none.")
        if "clip_score" in self.metrics:
            check_english(self.prompts)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        self.check_reference(comparing)
        if self.protocol is not None:
            refuse(self.protocol, of_reference(self.protocol, self.reference_set, self.num_scored()))

    def check_reference(self, comparing: list[str]) -> None:
        """Its sizes and counts, and that its first image can be read; `comparing`: the metrics that use it."""
        if self.reference_resize is not None and (self.reference is None or self.reference_resize < 1):
            raise ValueError(
                "`reference_resize` must be at least 1 pixel, and beside a reference, got "
                f"{self.reference_resize} for {self.reference}."
            )
        reference = self.reference_set
        if reference is None or not comparing:
            return
        for metric in comparing:
            feature = GAUSSIANS.get(metric)
            if feature in reference.statistics:
                check_dimensions(metric, reference.name, reference.statistics[feature], SIZES[feature])
                continue
            if len(reference) == 0:
                there = " and ".join(", ".join(STATISTICS[name]) for name in reference.statistics)
                raise ValueError(
                    f"{metric} must have images to compare with, but {reference.name} holds none"
                    f"{f', only the statistics {there}' if there else ''}; give a reference of images."
                )
            check_count(metric, len(reference), "reference images")
        if len(reference):
            reference.read(0, 1)

    def check_samples(self, count: int, facts: SampleFacts, size: Size | None = None) -> None:
        """Refuse samples that cannot be measured so.

        Args:
            size: height and width; None where no sample is there yet.

        Raises:
            ValueError: so; the message says what would do.
        """
        for metric in self.metrics:
            check_count(metric, count, "samples")
        scored = self.num_scored()
        if scored is not None and scored > count:
            raise ValueError(
                f"Prompts must be those of the first images, one each, got {scored} for {count} images; "
                "take fewer (--num_prompts)."
            )
        if self.protocol is not None:
            asked = of_samples(self.protocol, count, facts, size)
            refuse(self.protocol, asked + of_reference(self.protocol, self.reference_set, scored))
        reference = self.reference_set
        compared = reference is not None and len(reference) and set(self.metrics) & set(REFERENCE_METRICS)
        if size is not None and compared and reference is not None and reference.size != size:
            raise ValueError(
                f"Samples and reference must have one size, got {size[0]} x {size[1]} and {reference.size[0]} x "
                f"{reference.size[1]}; make samples of the reference's size, or crop and resize a reference folder "
                f"to that of the samples (--reference_resize {size[0]})."
            )

    @cached_property
    def reference_set(self) -> ImageSet | None:
        return None if self.reference is None else open_images(self.reference, self.reference_resize)

    def open_samples(self) -> ImageSet:
        if self.num_samples is None:
            return open_images(self.samples)
        return FolderImages(self.samples, files=[image_name(i) for i in range(self.num_samples)])

    def num_scored(self) -> int | None:
        """How many images have a CLIP score; None if it is not asked for."""
        return len(self.prompts) if set(self.metrics) & set(PROMPT_METRICS) else None


def check_count(metric: str, count: int, what: str) -> None:
    if count < MINIMA.get(metric, 1):
        raise ValueError(
            f"{metric} must have at least {MINIMA.get(metric, 1)} {what}, got {count}; give more, or leave it out."
        )


def check_dimensions(metric: str, name: str, found: int, needed: int) -> None:
    if found != needed:
        raise ValueError(
            f"{metric} must have statistics of {needed} dimensions, but those in {name} have {found}; "
            "give statistics of the Inception network of the ADM suite, or a reference of images."
        )
