"""Unit norm `quadratic` features of a chunk's keys and their gradient, with tokens last in memory.

A head has few channels: along them an operation runs for sixteen numbers, along them and the tokens of a chunk for
some five hundred. The features of channels x with the mean square m are `c_j x_i x_(i+j) / m`. As `c_0^2 = 1 / n` and
`c_j^2 = 2 / n` for j = 1, 2, 3, the square of their norm is a sum over neighbours on both sides, and m does not
change where they point:

    (m |f|)^2 = 1/n sum_i x_i^2 around_i        around_i = sum_(|j| <= 3) x_(i+j)^2

In float32 that fourth power overflows for channels of 1e9 and more.
"""

from typing import NamedTuple

import torch

from .feature_maps import MEAN_SQUARE_EPS, PRODUCTS, SMALLEST_NORM, factors_of

REACH = PRODUCTS - 1  # how far behind a channel the last stands that it is multiplied by


class UnitFeatures(NamedTuple):
    """Of channels `[G, n, C]`."""

    ring: torch.Tensor  # `[G, n + 6, C]`: before the first channel the last three, behind the last the first three
    around: torch.Tensor  # [G, n, C]
    mean_square: torch.Tensor  # m, [G, 1, C]
    inverse: torch.Tensor  # 1 / (m |f|), [G, 1, C]
    size: torch.Tensor  # |f|, [G, 1, C]
    keys: torch.Tensor  # f / |f|, [G, 4 n, C]


def unit_features(x: torch.Tensor) -> UnitFeatures:
    n = x.shape[1]
    first, others = factors_of(n)
    ring = x.index_select(1, torch.arange(-REACH, n + REACH, device=x.device) % n)
    squares = ring.square()
    pairs = squares[:, :-1] + squares[:, 1:]
    around = (pairs[:, :-2] + pairs[:, 2:])[:, :n].add_(pairs[:, 4:][:, :n]).add_(squares[:, 6:])  # 4, 2 and 1
    squares = squares[:, REACH : REACH + n]
    mean_square = squares.mean(1, keepdim=True).add_(MEAN_SQUARE_EPS)
    norm = (around * squares).sum(1, keepdim=True).div_(n).sqrt_()  # m |f|
    inverse = norm.maximum(mean_square * SMALLEST_NORM).reciprocal_()
    scaled = x * inverse
    keys = x.new_empty(len(x), PRODUCTS, n, x.shape[2])
    torch.mul(x, scaled * first, out=keys[:, 0])
    scaled *= others
    for j in range(1, PRODUCTS):
        torch.mul(neighbours(ring, n, j), scaled, out=keys[:, j])
    return UnitFeatures(ring, around, mean_square, inverse, norm / mean_square, keys.flatten(1, 2))


def gradient_of_channels(features: UnitFeatures, d_keys: torch.Tensor, d_size: torch.Tensor) -> torch.Tensor:
    """Of the channels, from those of the unit features `[G, 4 n, C]` and of their norm `[G, 1, C]`."""
    ring, around, mean_square, inverse, size, _ = features
    n = around.shape[1]
    x = neighbours(ring, n, 0)
    d_x = gradient_of_products(d_keys.unflatten(1, (PRODUCTS, n)), ring[:, REACH:], *factors_of(n))
    d_x *= inverse
    along = (d_x * x).sum(1, keepdim=True).mul_(0.5)  # d_keys times keys
    along *= size > SMALLEST_NORM
    d_size = d_size / mean_square
    through_norm = (d_size - along * inverse).mul_(inverse).mul_(2 / n)
    through_mean = (d_size * size).mul_(-2 / n)
    return d_x.addcmul_(x, torch.addcmul(through_mean, around, through_norm))


def gradient_of_products(d_products: torch.Tensor, circle: torch.Tensor, first: float, others: float) -> torch.Tensor:
    """Of channels, from that of their products `[G, 4, n, C]`.

    `circle`, `[G, n + 3, C]`, has the channels and behind the last the first three; squares have the factor `first`,
    other products `others`.
    """
    n = d_products.shape[2]
    x, d_circle = circle[:, :n], torch.zeros_like(circle)
    d_x = d_circle[:, :n]
    torch.mul(d_products[:, 0], x, out=d_x).mul_(2 * first)
    for j in range(1, PRODUCTS):
        d_x.addcmul_(d_products[:, j], circle[:, j : j + n], value=others)
        d_circle[:, j : j + n].addcmul_(d_products[:, j], x, value=others)
    for start in range(n, n + REACH, n):
        again = d_circle[:, start : start + n]
        d_x[:, : again.shape[1]] += again
    return d_x


def neighbours(ring: torch.Tensor, n: int, j: int) -> torch.Tensor:
    """The channel that stands `j` places behind each one."""
    return ring[:, REACH + j : REACH + j + n]
