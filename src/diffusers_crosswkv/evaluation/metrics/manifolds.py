"""Improved precision and recall (Kynkaanniemi et al., 2019, arXiv:1904.06991) as the ADM suite computes them."""

from collections.abc import Iterator

import torch

NEIGHBOURS = 3
BLOCK = 10_000  # ADM's: one of these is computed in one float type
TILE = 1_000  # rows that are in memory at once


def precision_recall(
    reference: torch.Tensor, samples: torch.Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Shares of samples within the reference's manifold, and of the reference within that of the samples.

    A manifold is the union of balls around its vectors, each as wide as the distance to the vector's k-th neighbour,
    the border included; the vector itself counts as its nearest. Distances are squared.

    ADM computes them in float16, and in float32 for a block of 10,000 x 10,000 of which one is not finite. float16
    moves the figures by up to half a percent of the images, so it is done here as well: every operation is rounded to
    float16, sums and products of matrices are accumulated in float32 first, as GPUs do. torch-fidelity's distances
    are float32 and not squared: the same balls, without ADM's rounding.

    Args:
        reference, samples: `[N, D]` and `[M, D]`, float32, on one device; in the ADM suite Inception's `pool_3`.

    Raises:
        ValueError: a side has too few vectors to have neighbours.
    """
    for name, features in (("reference", reference), ("samples", samples)):
        if len(features) <= neighbours:
            raise ValueError(
                f"Precision and recall with k = {neighbours} need at least {neighbours + 1} images on each side, "
                f"got {len(features)} ({name})."
            )
    reference_radii, sample_radii = radii(reference, neighbours), radii(samples, neighbours)
    in_samples = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    in_reference = torch.zeros(len(samples), dtype=torch.bool, device=reference.device)
    start = 0
    for tile in distances(reference, samples):
        rows = slice(start, start + len(tile))
        in_samples[rows] = (tile <= sample_radii).any(1)
        in_reference |= (tile <= reference_radii[rows, None]).any(0)
        start += len(tile)
    return float(in_reference.double().mean()), float(in_samples.double().mean())


def radii(features: torch.Tensor, neighbours: int) -> torch.Tensor:
    """`[N]`, squared distances to the k-th neighbours."""
    tiles = distances(features, features)
    return torch.cat([tile.topk(neighbours + 1, largest=False).values[:, -1] for tile in tiles])


def distances(rows: torch.Tensor, columns: torch.Tensor) -> Iterator[torch.Tensor]:
    """Squared distances, float32, some rows at a time: `[<= 1000, M]`."""
    column_blocks = columns.split(BLOCK)
    for row_block in rows.split(BLOCK):
        dtypes = [dtype_of_block(row_block, columns) for columns in column_blocks]
        for tile in row_block.split(TILE):
            parts = [
                pairwise(tile, columns, dtype).float() for columns, dtype in zip(column_blocks, dtypes, strict=True)
            ]
            yield torch.cat(parts, 1)


def dtype_of_block(rows: torch.Tensor, columns: torch.Tensor) -> torch.dtype:
    """float16 if all distances are finite in it."""
    lengths = [x.half().float().norm(dim=1).max() for x in (rows, columns)]
    if (lengths[0] + lengths[1]) ** 2 < 0.99 * torch.finfo(torch.float16).max:  # none can overflow
        return torch.float16
    finite = all(pairwise(tile, columns, torch.float16).isfinite().all() for tile in rows.split(TILE))
    return torch.float16 if finite else torch.float32


def pairwise(u: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[N, M]`, max(|u|^2 - 2 u v + |v|^2, 0), every operation rounded to `dtype`."""
    u, v = (x.to(dtype) for x in (u, v))
    norm_u, norm_v = (x.square().float().sum(1).to(dtype) for x in (u, v))
    product = (u.float() @ v.float().T).to(dtype)
    return (norm_u[:, None] - 2 * product + norm_v).clamp(min=0)
