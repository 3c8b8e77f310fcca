"""All figures that are made of Inception's features."""

from collections.abc import Iterable

import torch

from ..kernel_rows import Row
from .extractors import InceptionFeatures
from .features import FeatureFiles
from .frechet import Gaussian, Moments, frechet_distance
from .inception import POOL_SIZE, SPATIAL_SIZE
from .inception_score import SPLIT_SIZE, inception_score
from .kernel_distances import KID_SEED, KID_SUBSET_SIZE, KID_SUBSETS, kid
from .manifolds import NEIGHBOURS, precision_recall

MANIFOLD_IMAGES = 10_000  # of the reference, for precision, recall, KID and CMMD, as many as ADM's batches hold
INCEPTION_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
GAUSSIANS = {"fid": "pool", "sfid": "spatial"}  # metric, and the features that it compares
SIZES = {"pool": POOL_SIZE, "spatial": SPATIAL_SIZE}


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
