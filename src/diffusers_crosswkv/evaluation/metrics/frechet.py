"""The Frechet distance between two Gaussians (Heusel et al., 2017, arXiv:1706.08500): FID, sFID."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean `[D]` and a factor `A` `[R, D]` of the covariance `A' A`, float64."""

    mean: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean).all() and np.isfinite(self.factor).all()):
            raise ValueError("Mean and covariance must be finite; the features hold infinities or NaN.")

    @classmethod
    def from_covariance(cls, mean: np.ndarray, covariance: np.ndarray) -> "Gaussian":
        """`[D]` and `[D, D]`; eigenvalues that rounding made negative count as zero.

        Raises:
            ValueError: the shapes are others, or something is not finite.
        """
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"A mean must be `[D]` and its covariance `[D, D]`, got {mean.shape} and {covariance.shape}."
            )
        if not np.isfinite(covariance).all():
            raise ValueError("Mean and covariance must be finite; the features hold infinities or NaN.")
        values, vectors = np.linalg.eigh((covariance + covariance.T).astype(np.float64) / 2)
        positive = values > 0
        return cls(mean.astype(np.float64), np.sqrt(values[positive])[:, None] * vectors.T[positive])


class Moments:
    """Mean and covariance (that of N - 1) of features that come in batches, float64.

    Up to D vectors are kept, which are a factor of their covariance as they are; from then on memory is `[D, D]`.
    Batches are merged by their means (Chan, Golub and LeVeque, 1983), so a large common offset costs no digits. The
    ADM suite averages in float32, which moves the mean by about 1e-6 of its size.
    """

    def __init__(self, size: int):
        self.size, self.count = size, 0
        self._few: list[np.ndarray] | None = []
        self._mean = np.zeros(size)
        self._scatter = np.zeros((0, 0))

    def add(self, features: np.ndarray) -> None:
        """`[N, D]` of any float dtype, N >= 1."""
        features = features.astype(np.float64)
        if self._few is not None:
            self.count += len(features)
            self._few.append(features)
            if self.count <= self.size:
                return
            features, self._few, self.count = np.concatenate(self._few), None, 0
            self._scatter = np.zeros((self.size, self.size))
        mean = features.mean(0)
        centred = features - mean
        total = self.count + len(features)
        step = mean - self._mean
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(features) / total)
        self._mean += step * (len(features) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """
        Raises:
            ValueError: fewer than two vectors were added, or one was not finite.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 images, got {self.count}.")
        if self._few is None:
            return Gaussian.from_covariance(self._mean, self._scatter / (self.count - 1))
        features = np.concatenate(self._few)
        mean = features.mean(0)
        return Gaussian(mean, (features - mean) / np.sqrt(self.count - 1))


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

    With C = A' A the last trace is the sum of the singular values of A1 A2', whatever the rank: nothing is added to a
    diagonal. ADM's suite takes SciPy's `sqrtm(C1 C2)`; where that is not finite it adds 1e-6 to both diagonals and
    tries again, and it raises where the diagonal's imaginary part is above 1e-3. Both agree while the covariances are
    well conditioned. Where they are singular (fewer images than dimensions) `sqrtm` is not accurate, and this is.

    Raises:
        ValueError: the features are of different sizes.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"Both sides must have features of one size, got {one.mean.size} and {other.mean.size}; "
            "were the statistics made with another network?"
        )
    step = one.mean - other.mean
    overlap = np.linalg.svd(one.factor @ other.factor.T, compute_uv=False).sum()
    return float(step @ step + (one.factor**2).sum() + (other.factor**2).sum() - 2 * overlap)
