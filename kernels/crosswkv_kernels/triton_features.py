"""The feature maps in Triton: `feature_maps.py` says what they are.

A block has one column for each feature, BK of them, in the order of the state's columns `j * N + i`. With `quadratic`
N, the number of channels, is padded to BN, so that column `j * BN + i` is feature `j * N + i`, and a sum over j is one
over a dimension.
"""

from typing import Any

import triton
import triton.language as tl

from .feature_maps import MEAN_SQUARE_EPS, PRODUCTS, QUADRATIC, number_of_features
from .triton_blocks import load, offsets, packed

EPS = tl.constexpr(MEAN_SQUARE_EPS)
AHEAD = tl.constexpr(PRODUCTS)  # further than any second channel is


def feature_constants(channels: int, feature_map: str) -> dict[str, Any]:
    """N, K, BN, BK and MAP of a kernel that maps `channels` of each head; BK is 16 at least."""
    BN = triton.next_power_of_2(channels)
    BK = max(PRODUCTS * BN if feature_map == QUADRATIC else BN, 16)
    BN = BK // PRODUCTS if feature_map == QUADRATIC else BK
    K = number_of_features(feature_map, channels)
    return {"N": channels, "K": K, "BN": BN, "BK": BK, "MAP": feature_map}


@triton.jit
def feature_columns(i_h, N: tl.constexpr, BN: tl.constexpr, o):
    """Of each column `o`: the feature, whether there is one, and the places of its two channels in a row."""
    o_j, o_i = o // BN, o % BN
    return o_j * N + o_i, o_i < N, i_h * N + o_i, i_h * N + (o_i + o_j) % N


@triton.jit
def features_of_partner(o_k, i_h, N: tl.constexpr):
    """Of each column (j, m): the feature (j, m - j), whose second channel is m, and the place of its first."""
    o_j, o_i = o_k // N, o_k % N
    o_first = (o_i - o_j + AHEAD * N) % N  # of a positive number
    return o_j * N + o_first, i_h * N + o_first


@triton.jit
def load_channels(p_x, i_b, o_t, s_b, s_t, o_n, o_partner, m_x, MAP: tl.constexpr):
    """The channel of each column, and what it is multiplied by."""
    b_x = load(p_x, offsets(i_b, o_t, s_b, s_t, o_n), m_x)
    b_partner = b_x
    if MAP == "quadratic":
        b_partner = load(p_x, offsets(i_b, o_t, s_b, s_t, o_partner), m_x)
    return b_x, b_partner


@triton.jit
def load_or_one(p_x, o_x, m_x):
    b_x = tl.where(m_x, 1.0, 0.0)
    if p_x is not None:
        b_x = load(p_x, o_x, m_x)
    return b_x


@triton.jit
def column_factors(o_k, N: tl.constexpr):
    """What the products of each column are multiplied by, but for the mean square of their token."""
    n: tl.constexpr = N**-0.5
    return tl.where(o_k < N, n, 1.4142135623730951 * n)


@triton.jit
def product_factors(b_x, o_k, N: tl.constexpr, BN: tl.constexpr):
    """What products are multiplied by, and the mean square of the channels; a block has some of its columns j."""
    b_m = tl.sum(b_x * b_x, 1) / (N * (b_x.shape[1] // BN)) + EPS
    return column_factors(o_k, N)[None, :] / b_m[:, None], b_m


@triton.jit
def features(b_x, b_partner, o_k, N: tl.constexpr, BN: tl.constexpr, MAP: tl.constexpr):
    if MAP == "quadratic":
        b_factors, _ = product_factors(b_x, o_k, N, BN)
        b_x = b_x * b_partner * b_factors
    elif MAP == "silu":
        b_x = b_x * tl.sigmoid(b_x)
    return b_x


@triton.jit
def bare_products(b_x, N: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Of channels `[BT, BN]` of 16 bits, which one pass of tf32 takes whole, each in its place by a matrix product.

    Loaded to where they are needed, channels would be read eight times, half of that number by number.
    """
    o_i, o_k = tl.arange(0, BN)[:, None], tl.arange(0, BK)[None, :]
    o_first = o_k % BN
    o_second = tl.where(o_first < N, (o_first + o_k // BN) % N, BN)
    b_first = tl.dot(b_x, tl.where(o_i == o_first, 1.0, 0.0), input_precision="tf32")
    return b_first * tl.dot(b_x, tl.where(o_i == o_second, 1.0, 0.0), input_precision="tf32")


@triton.jit
def slopes(b_x, MAP: tl.constexpr):
    """Of the maps that take channels one by one."""
    b_slope = tl.full(b_x.shape, 1, tl.float32)
    if MAP == "silu":
        b_slope = tl.sigmoid(b_x) * (1 + b_x * tl.sigmoid(-b_x))
    return b_slope


@triton.jit
def gradient_of_products(b_d, b_dback, b_x, b_partner, b_y, o_k, N: tl.constexpr, BN: tl.constexpr):
    """What columns (j, m) add to the gradient of channel m.

    It is the first channel of feature (j, m), whose gradient is `b_d` and second channel `b_partner`; the second one
    of (j, m - j), whose gradient is `b_dback` and first channel `b_y`; and it has a share in the mean square of all.
    """
    b_factors, b_m = product_factors(b_x, o_k, N, BN)
    b_d *= b_factors * b_partner
    b_dm = -tl.sum(b_d * b_x, 1) / b_m
    b_once = tl.where(tl.arange(0, b_x.shape[1]) < BN, 2.0 / N, 0.0)
    return b_d + b_dback * b_factors * b_y + b_dm[:, None] * b_once[None, :] * b_x


@triton.jit
def store_channels(p_x, b_x, i_row, width, o_first, m_t, N: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr):
    """Sum the columns of each channel."""
    b_x = tl.sum(tl.reshape(b_x, (BT, b_x.shape[1] // BN, BN)), 1)
    o_i = tl.arange(0, BN)
    tl.store(p_x + packed(i_row, width, o_first + o_i), b_x, mask=m_t[:, None] & (o_i < N)[None, :])
