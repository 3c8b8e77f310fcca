"""The Frechet distance between two Gaussians (Heusel et al., 2017, arXiv:1706.08500): FID, sFID."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean `[D]` and covariance `[D, D]` (that of N - 1) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        size = self.mean.size
        if self.mean.shape != (size,) or self.covariance.shape != (size, size):
            raise ValueError(
                f"A mean must be `[D]` and its covariance `[D, D]`, got {self.mean.shape} and {self.covariance.shape}."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("Mean and covariance must be finite; the features hold infinities or NaN.")


class Moments:
    """Mean and covariance of features that come in batches: float64, of constant size.

    Batches are merged by their means (Chan, Golub and LeVeque, 1983), so a large common offset costs no digits. The
    ADM suite averages in float32, which moves the mean by about 1e-6 of its size.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    def add(self, features: np.ndarray) -> None:
        """`[N, D]` of any float dtype, N >= 1."""
        features = features.astype(np.float64)
        mean = features.mean(0)
        centred = features - mean
        total = self.count + len(features)
        step = mean - self.mean
        self.scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(features) / total)
        self.mean += step * (len(features) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """
        Raises:
            ValueError: fewer than two vectors were added, or one was not finite.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 images, got {self.count}.")
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))


def gaussian_of(batches: Iterable[np.ndarray]) -> Gaussian:
    """Of features in batches of `[N, D]`."""
    moments: Moments | None = None
    for batch in batches:
        moments = moments or Moments(batch.shape[1])
        moments.add(batch)
    if moments is None:
        raise ValueError("A covariance needs at least 2 images, got none.")
    return moments.gaussian()


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), >= 0 but for rounding.

    The last trace is the sum of the singular values of C1^(1/2) C2^(1/2), whose roots exist whatever the rank. ADM's
    suite takes SciPy's `sqrtm(C1 C2)`: where that is not finite it adds 1e-6 to both diagonals and tries again, and it
    raises where the diagonal's imaginary part is above 1e-3. Both figures agree while the covariances are well
    conditioned; where they are singular (fewer images than dimensions) `sqrtm` is not accurate, and this is.

    Raises:
        ValueError: the features are of different sizes.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"Both sides must have features of one size, got {one.mean.size} and {other.mean.size}; "
            "were the statistics made with another network?"
        )
    step = one.mean - other.mean
    overlap = np.linalg.svd(root(one.covariance) @ root(other.covariance), compute_uv=False).sum()
    return float(step @ step + np.trace(one.covariance) + np.trace(other.covariance) - 2 * overlap)


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root; eigenvalues that rounding made negative count as zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
