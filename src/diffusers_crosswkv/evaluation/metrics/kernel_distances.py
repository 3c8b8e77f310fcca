"""Squared maximum mean discrepancies (Gretton et al., 2012): KID and CMMD."""

import numpy as np
import torch

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020
CMMD_SIGMA, CMMD_SCALE, CMMD_TILE = 10.0, 1000.0, 1000


def kid(
    samples: torch.Tensor,
    reference: torch.Tensor,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> tuple[float, float]:
    """Kernel Inception distance (Binkowski et al., 2018, arXiv:1801.01401): mean and deviation over subsets.

    The unbiased estimate with the kernel (x y / D + 1)^3, so it may be slightly below 0. Subsets are those that
    torch-fidelity 0.4 draws for the same seed, with the samples as its first input; its kernels are float32, these
    float64.

    Args:
        samples, reference: `[N, D]` and `[M, D]`.

    Raises:
        ValueError: a side has fewer vectors than a subset.
    """
    if not 2 <= subset_size <= min(len(samples), len(reference)):
        raise ValueError(
            f"KID's subsets must have 2 or more images and no more than there are, got {subset_size} "
            f"for {len(samples)} samples and {len(reference)} reference images."
        )
    rng = np.random.RandomState(seed)  # torch-fidelity's generator
    estimates = []
    for _ in range(subsets):
        chosen = [rng.choice(len(x), subset_size, replace=False) for x in (samples, reference)]
        x, y = (
            x[torch.from_numpy(i).to(x.device)].double() for x, i in zip((samples, reference), chosen, strict=True)
        )
        estimates.append(unbiased_mmd(polynomial(x, x), polynomial(y, y), polynomial(x, y)))
    return float(np.mean(estimates)), float(np.std(estimates))


def polynomial(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased_mmd(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> float:
    n = len(xx)
    same = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return float(same - 2 * xy.mean())


def cmmd(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """CLIP maximum mean discrepancy (Jayasumana et al., 2024, arXiv:2401.09603), x 1,000 as its authors print it.

    The biased estimate with a Gaussian kernel of bandwidth 10, which is in effect the distance of means and second
    moments of vectors of length 1.

    Args:
        samples, reference: CLIP's image embeddings of unit length, `[N, D]` and `[M, D]`.
    """
    samples, reference = samples.double(), reference.double()
    distance = mean_kernel(samples, samples) + mean_kernel(reference, reference) - 2 * mean_kernel(samples, reference)
    return CMMD_SCALE * distance


def mean_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    total = sum(
        float(torch.exp(-torch.cdist(tile, y).square() / (2 * CMMD_SIGMA**2)).sum()) for tile in x.split(CMMD_TILE)
    )
    return total / (len(x) * len(y))
