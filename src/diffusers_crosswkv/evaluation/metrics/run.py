"""An evaluation: features of samples and reference, figures, rows."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

import diffusers_crosswkv

from ...environment import environment
from ...files import write_whole
from ..kernel_rows import Row, commit
from .extractors import (
    CLIP_MODEL,
    CMMD_MODEL,
    MULTILINGUAL_CLIP_MODEL,
    ClipEmbeddings,
    ClipScores,
    InceptionFeatures,
    check_english,
    weights_of,
)
from .features import BATCH_SIZE, FeatureFiles
from .frechet import Gaussian, Moments, frechet_distance
from .image_sets import ImageSet, open_images
from .inception import POOL_SIZE, SPATIAL_SIZE
from .inception_score import SPLIT_SIZE, inception_score
from .kernel_distances import KID_SEED, KID_SUBSET_SIZE, KID_SUBSETS, cmmd, kid
from .manifolds import NEIGHBOURS, precision_recall
from .protocols import (
    METRICS,
    PROMPT_METRICS,
    PROTOCOLS,
    REFERENCE_METRICS,
    SampleFacts,
    of_reference,
    of_samples,
    refuse,
    result_name,
)
from .weights import find_inception_weights

MANIFOLD_IMAGES = 10_000  # of the reference, for precision, recall, KID and CMMD, as many as ADM's batches hold
INCEPTION_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
GAUSSIANS = {"fid": "pool", "sfid": "spatial"}  # metric, and the features that it compares
SIZES = {"pool": POOL_SIZE, "spatial": SPATIAL_SIZE}
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and with what.

    Args:
        samples: a folder of images or an `.npz` batch.
        output_dir: for features and [`RESULTS`]; the same one goes on where an interrupted run stopped.
        metrics: some of [`METRICS`].
        reference: like `samples`; None where no metric compares.
        reference_resize: see [`open_images`].
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
            ValueError: an argument does not fit; the message says what would.
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
        reference = self.open_reference()
        if self.protocol is not None:
            refuse(self.protocol, of_reference(self.protocol, reference, self.num_scored()))

    def open_reference(self) -> ImageSet | None:
        return None if self.reference is None else open_images(self.reference, self.reference_resize)

    def num_scored(self) -> int | None:
        """How many images have a CLIP score; None if it is not asked for."""
        return len(self.prompts) if set(self.metrics) & set(PROMPT_METRICS) else None


def check_weights(config: EvaluationConfig, state: PartialState) -> None:
    """Find or download Inception's weights and see that models of the Hub can be had, before samples are made.

    Raises:
        OSError: something is missing; the message says how to get it.
    """
    models = {
        "clip_score": config.clip_model,
        "clip_score_multilingual": config.multilingual_clip_model,
        "cmmd": config.cmmd_model,
    }
    with state.local_main_process_first():
        if set(config.metrics) & set(INCEPTION_METRICS):
            find_inception_weights(config.inception_weights)
        for name in set(config.metrics) & set(models):
            weights_of(models[name])


def evaluate(config: EvaluationConfig, state: PartialState) -> list[Row]:
    """Measure, and write a row per figure to `output_dir`; rows of other names there are kept.

    Args:
        state: of Accelerate: the processes that share the work. The main one returns all rows, others none.

    Raises:
        OSError: images or weights are missing; the message says how to get them.
        ValueError: something does not fit together, see [`EvaluationConfig.check`].
    """
    config.check()
    work = Work(config, state)
    work.check()
    rows = [*work.inception_rows(), *work.clip_rows(), *work.cmmd_rows()]
    if state.is_main_process:
        put_rows(config.output_dir / RESULTS, rows)
    return rows


class Work:
    """The steps of [`evaluate`]."""

    def __init__(self, config: EvaluationConfig, state: PartialState):
        self.config, self.state = config, state
        self.samples = open_images(config.samples)
        self.reference = config.open_reference()

    def check(self) -> None:
        config, reference = self.config, self.reference
        if len(self.samples) == 0:
            raise ValueError(f"{config.samples} holds statistics alone; samples must be images.")
        needs_images = [name for name in config.metrics if name in ("precision", "recall", "kid", "cmmd")]
        if reference is not None and len(reference) == 0 and needs_images:
            wanting = ", ".join(needs_images)
            raise ValueError(
                f"{wanting} must have images to compare with, but {reference.name} holds statistics alone."
            )
        scored = config.num_scored()
        if scored is not None and scored > len(self.samples):
            raise ValueError(
                f"Prompts must be those of the first images, one each, got {scored} for {len(self.samples)} images; "
                "take fewer (--num_prompts)."
            )
        if config.protocol is not None:
            asked = of_samples(config.protocol, len(self.samples), config.facts, self.samples.size)
            refuse(config.protocol, asked + of_reference(config.protocol, reference, scored))

    def inception_rows(self) -> list[Row]:
        metrics = [name for name in self.config.metrics if name in INCEPTION_METRICS]
        if not metrics:
            return []
        with self.state.local_main_process_first():  # one process downloads
            path = find_inception_weights(self.config.inception_weights)
        inception = InceptionFeatures(path, self.state.device)
        samples = self.features("samples-inception", self.samples, inception, len(self.samples))
        reference, given = None, {}
        if self.reference is not None:
            given = self.reference.gaussians if self.state.is_main_process else {}
            enough = all(name == "is" or GAUSSIANS.get(name) in self.reference.statistics for name in metrics)
            reference = self.features(
                "reference-inception", self.reference, inception, 0 if enough else len(self.reference)
            )
        if not self.state.is_main_process:
            return []
        figures = InceptionFigures(metrics, inception, self.state.device)
        figures.read(samples, reference, given)
        return [self.row(name, value, {"weights": inception.weights} | more) for name, value, more in figures.all()]

    def clip_rows(self) -> list[Row]:
        models = {
            "clip_score": self.config.clip_model,
            "clip_score_multilingual": self.config.multilingual_clip_model,
        }
        rows = []
        for name in (name for name in PROMPT_METRICS if name in self.config.metrics):
            prompts = self.config.prompts
            with self.state.local_main_process_first():
                scorer = ClipScores(models[name], prompts, self.state.device)
            files = self.features(name, self.samples, scorer, len(prompts))
            if self.state.is_main_process:
                scores = torch.cat([batch["score"] for batch in files.read()]).double()
                more = {"weights": scorer.weights, "cut_prompts": scorer.cut_prompts()}
                deviation = float(scores.std()) if len(scores) > 1 else 0.0
                rows.append(self.row(name, float(scores.mean()), more | {"deviation": deviation}, count=len(prompts)))
        return rows

    def cmmd_rows(self) -> list[Row]:
        if "cmmd" not in self.config.metrics or self.reference is None:
            return []
        with self.state.local_main_process_first():
            network = ClipEmbeddings(self.config.cmmd_model, self.state.device)
        sides = [
            self.features(f"{side}-cmmd", images, network, len(images))
            for side, images in (("samples", self.samples), ("reference", self.reference))
        ]
        if not self.state.is_main_process:
            return []
        embeddings = [torch.cat([batch["embedding"] for batch in files.read()]) for files in sides]
        chosen = embeddings[1][manifold_indices(len(embeddings[1]))]
        more = {"weights": network.weights, "reference_images": len(chosen)}
        return [self.row("cmmd", cmmd(embeddings[0], chosen), more)]

    def features(
        self, name: str, images: ImageSet, extractor: InceptionFeatures | ClipScores | ClipEmbeddings, count: int
    ) -> FeatureFiles:
        files = FeatureFiles(
            self.config.output_dir / "features" / name, images, extractor, count, self.config.batch_size
        )
        files.extract(self.state, name)
        return files

    def row(self, metric: str, value: float, more: Row, count: int | None = None) -> Row:
        config, samples = self.config, self.samples
        count = len(samples) if count is None else count
        reference = self.reference if metric in REFERENCE_METRICS else None
        row: Row = {
            "name": result_name(metric, samples, count, config.facts, reference),
            "metric": metric,
            "value": value,
            "protocol": config.protocol,
            "num_samples": count,
            "samples": samples.name,
            "size": list(samples.size),
            **asdict(config.facts),
        }
        if reference is not None:
            row |= {
                "reference": reference.name,
                "reference_resize": reference.resize,
                "reference_images": len(reference),
            }
        versions = {
            "diffusers_crosswkv": diffusers_crosswkv.__version__,
            "commit": commit(),
            **environment(self.state.device),
        }
        return row | {"processes": self.state.num_processes} | more | versions


class InceptionFigures:
    """All that is measured of Inception's features; vectors are kept of the samples and of 10,000 reference images."""

    def __init__(self, metrics: list[str], inception: InceptionFeatures, device: torch.device):
        self.metrics, self.inception, self.device = metrics, inception, device
        self.wanted = [feature for metric, feature in GAUSSIANS.items() if metric in metrics]

    def read(self, samples: FeatureFiles, reference: FeatureFiles | None, given: dict[str, Gaussian]) -> None:
        """`given`: statistics of the reference that need not be computed."""
        self.gaussians, self.pool = read_features(samples, self.wanted, None)
        self.reference_gaussians = given
        if reference is not None:
            missing = [name for name in self.wanted if name not in given]
            computed, self.reference_pool = read_features(reference, missing, MANIFOLD_IMAGES)
            self.reference_gaussians = given | computed

    def all(self) -> Iterable[tuple[str, float, Row]]:
        """Name, figure, and what else a row says of it."""
        for metric, feature in GAUSSIANS.items():
            if metric in self.metrics:
                yield metric, frechet_distance(self.gaussians[feature], self.reference_gaussians[feature]), {}
        if "is" in self.metrics:
            yield "is", inception_score(self.inception.logits(self.pool)), {"split_size": SPLIT_SIZE}
        if {"precision", "recall"} & set(self.metrics):
            values = precision_recall(self.reference_pool.to(self.device), self.pool.to(self.device))
            for metric, value in zip(("precision", "recall"), values, strict=True):
                if metric in self.metrics:
                    yield metric, value, {"neighbours": NEIGHBOURS, "manifold_images": len(self.reference_pool)}
        if "kid" in self.metrics:
            size = min(KID_SUBSET_SIZE, len(self.pool), len(self.reference_pool))
            device = torch.device("cpu") if self.device.type == "mps" else self.device  # which has no float64
            mean, deviation = kid(self.pool.to(device), self.reference_pool.to(device), subset_size=size)
            more = {"deviation": deviation, "subsets": KID_SUBSETS, "subset_size": size, "subset_seed": KID_SEED}
            yield "kid", mean, more | {"manifold_images": len(self.reference_pool)}


def read_features(
    files: FeatureFiles, gaussians: list[str], most: int | None
) -> tuple[dict[str, Gaussian], torch.Tensor]:
    """Statistics of the features named, over all images, and `pool` of `most` of them, spread evenly."""
    moments = {name: Moments(SIZES[name]) for name in gaussians}
    count = files.batches[-1][1] if files.batches else 0
    kept = manifold_indices(count, most)
    pool = torch.empty(len(kept), POOL_SIZE)
    for (start, stop), batch in zip(files.batches, files.read(), strict=True):
        for name, of in moments.items():
            of.add(batch[name].numpy())
        inside = (kept >= start) & (kept < stop)
        pool[inside] = batch["pool"][kept[inside] - start]
    return {name: of.gaussian() for name, of in moments.items()}, pool


def manifold_indices(count: int, most: int | None = MANIFOLD_IMAGES) -> torch.Tensor:
    """All indices below `count`, or `most` of them, drawn once for all by a fixed seed, in order."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def put_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to a file, in the place of those with their names; written whole."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = {row["name"]: row for row in map(json.loads, lines)} | {row["name"]: row for row in rows}
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept.values()).encode())
