"""An evaluation: features of samples and reference, figures, rows."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import torch
from accelerate import PartialState

import diffusers_crosswkv

from ...environment import environment
from ..kernel_rows import Row, commit
from .clip_score import CLIP_SCALE, clip_score
from .config import EvaluationConfig
from .extractors import ClipEmbeddings, ClipScores, InceptionFeatures
from .features import FeatureFiles
from .image_sets import ImageSet, SomeImages, digest
from .inception_figures import GAUSSIANS, INCEPTION_METRICS, InceptionFigures, manifold_indices
from .kernel_distances import cmmd
from .protocols import PROMPT_METRICS, REFERENCE_METRICS, result_name
from .rows import RESULTS, put_row
from .weights import find_inception_weights, load_inception

Network = InceptionFeatures | ClipScores | ClipEmbeddings


def check_weights(config: EvaluationConfig, state: PartialState) -> None:
    """Find or download all weights and load them once, before samples are made.

    Raises:
        OSError: something is missing; the message says how to get it.
        ValueError: a file holds something else.
    """
    with state.local_main_process_first():
        if not state.is_local_main_process:
            return
        if set(config.metrics) & set(INCEPTION_METRICS):
            load_inception(find_inception_weights(config.inception_weights))
        for name in config.metrics:
            if name in PROMPT_METRICS:
                ClipScores(scorer_of(name, config), config.prompts, torch.device("cpu")).check()
        if "cmmd" in config.metrics:
            ClipEmbeddings(config.cmmd_model, torch.device("cpu")).check()


def scorer_of(metric: str, config: EvaluationConfig) -> str:
    return config.clip_model if metric == "clip_score" else config.multilingual_clip_model


def evaluate(config: EvaluationConfig, state: PartialState) -> list[Row]:
    """Measure, and write a row per figure to `output_dir` as it is known; rows of other measurements there are kept.

    Args:
        state: of Accelerate: the processes that share the work. The main one returns all rows, others none.

    Raises:
        OSError: images or weights are missing; the message says how to get them.
        ValueError: something does not fit together, see [`EvaluationConfig.check`].
    """
    config.check()
    work = Work(config, state)
    work.check()
    rows = []
    for row in chain(work.inception_rows(), work.clip_rows(), work.cmmd_rows()):  # of the main process alone
        put_row(config.output_dir / RESULTS, row)
        rows.append(row)
    return rows


class Work:
    """The steps of [`evaluate`]."""

    def __init__(self, config: EvaluationConfig, state: PartialState):
        self.config, self.state = config, state
        self.samples = config.open_samples()
        self.reference = config.reference_set

    def check(self) -> None:
        if len(self.samples) == 0:
            raise ValueError(f"Samples must be images, but {self.samples.name} holds none; give a folder or a batch.")
        self.config.check_samples(len(self.samples), self.config.facts, self.samples.size)

    def inception_rows(self) -> Iterator[Row]:
        metrics = [name for name in self.config.metrics if name in INCEPTION_METRICS]
        if not metrics:
            return
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
            return
        figures = InceptionFigures(metrics, inception, self.state.device)
        figures.read(samples, reference, given)
        for name, value, more in figures.all():
            yield self.row(name, value, inception, more)

    def clip_rows(self) -> Iterator[Row]:
        prompts = self.config.prompts
        for name in (name for name in PROMPT_METRICS if name in self.config.metrics):
            with self.state.local_main_process_first():
                scorer = ClipScores(scorer_of(name, self.config), prompts, self.state.device)
            files = self.features(name, self.samples, scorer, len(prompts))
            if not self.state.is_main_process:
                continue
            cosines = torch.cat([batch["cosine"] for batch in files.read()]).double()
            more = {
                "prompts": f"sha256:{digest(list(prompts))}",
                "cut_prompts": scorer.cut_prompts(),
                "deviation": CLIP_SCALE * float(cosines.std()) if len(cosines) > 1 else 0.0,
            }
            yield self.row(name, clip_score(cosines), scorer, more, count=len(prompts))

    def cmmd_rows(self) -> Iterator[Row]:
        if "cmmd" not in self.config.metrics or self.reference is None:
            return
        with self.state.local_main_process_first():
            network = ClipEmbeddings(self.config.cmmd_model, self.state.device)
        chosen = manifold_indices(len(self.reference)).tolist()
        compared = self.reference if len(chosen) == len(self.reference) else SomeImages(self.reference, chosen)
        sides = [
            self.features(f"{side}-cmmd", images, network, len(images))
            for side, images in (("samples", self.samples), ("reference", compared))
        ]
        if not self.state.is_main_process:
            return
        samples, reference = (torch.cat([batch["embedding"] for batch in files.read()]) for files in sides)
        yield self.row("cmmd", cmmd(samples, reference), network, {"reference_images": len(chosen)})

    def features(self, name: str, images: ImageSet, extractor: Network, count: int) -> FeatureFiles:
        files = FeatureFiles(
            self.config.output_dir / "features" / name, images, extractor, count, self.config.batch_size
        )
        files.extract(self.state, name)
        return files

    def row(self, metric: str, value: float, network: Network, more: Row, count: int | None = None) -> Row:
        config, samples = self.config, self.samples
        count = len(samples) if count is None else count
        reference = self.reference if metric in REFERENCE_METRICS else None
        row: Row = {
            "name": result_name(metric, samples, count, config.facts, network.resize, reference),
            "metric": metric,
            "value": value,
            "protocol": config.protocol,
            "num_samples": count,
            "samples": samples.name,
            "size": list(samples.size),
            "resize": samples.resize,
            "network_resize": network.resize,
            "weights": network.weights,
            **asdict(config.facts),
        }
        if reference is not None:
            row |= {
                "reference": reference.name,
                "reference_resize": reference.resize,
                "reference_images": len(reference),
                "reference_size": list(reference.size) if len(reference) else None,
            }
        versions = {
            "diffusers_crosswkv": diffusers_crosswkv.__version__,
            "commit": commit(),
            **environment(self.state.device),
        }
        return row | {"processes": self.state.num_processes} | more | versions
