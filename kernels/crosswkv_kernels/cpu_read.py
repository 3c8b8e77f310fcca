"""How a CPU reads a state, with no care for gradients.

Receptances are taken a few hundred tokens at a time, and what is made of them always lies in the same memory, which
stays in the processor's cache; channels stand before tokens, so that every product runs along tokens.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .feature_maps import MEAN_SQUARE_EPS, PRODUCTS, QUADRATIC, factors_like

CHANNELS_AT_ONCE = 2**18  # of 2**16 to 2**20 the fastest at Stable Diffusion's sizes on two cores
ALIGNMENT = 64  # of the number of tokens at a time: rows begin where vectors and cache lines do
PADDING = 16  # numbers between rows of the result: rows that are powers of two apart share few lines of a cache


def is_eager(x: torch.Tensor) -> bool:
    """Whether operations run on a CPU one by one, as they are called."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def can_read(r: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether that is so, and nothing needs a gradient."""
    return is_eager(r) and not (
        torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (r, *others))
    )


def read_state(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    feature_map: str,
    overwrite_r: bool,
) -> torch.Tensor:
    """What `state_readout` gives for `[B, T, H, n]` without a gate: `[B, T, H * V]`, tokens last in memory.

    It computes in the dtype of `r` and `state`, which is one.
    """
    batch_size, num_heads, value_dim, _ = state.shape
    length, n = r.shape[1], r.shape[3]
    channels = r.permute(0, 2, 3, 1)  # [B, H, n, T]
    if overwrite_r and value_dim == n and may_be_overwritten(r):
        out = channels
    else:
        out = empty_heads(r, num_heads, value_dim)  # [B, H, V, T]
    if out.numel() == 0:
        return out.flatten(1, 2).mT
    products, centred = feature_map == QUADRATIC, norm_bias is not None
    if products:
        state = states_of_products(state, n, centred)
    elif centred:
        state = centre(state)

    sequences, size = sequences_and_tokens(batch_size, num_heads * n, length, CHANNELS_AT_ONCE)
    map_block = feature_maker(feature_map, r, sequences * num_heads, size)
    reads = r.new_empty(sequences * num_heads, value_dim, size)
    write_block = block_writer(norm_weight, norm_bias, eps, n, reads)
    for rows, tokens in blocks_of(batch_size, length, sequences, size):
        features, target = map_block(channels[rows, ..., tokens]), out[rows, ..., tokens]
        o = torch.bmm(state[rows].flatten(0, 1), features, out=reads[part_of(reads, target)])
        # n times the mean square of channels, whose squares come first
        size_of_channels = features[:, :n].sum(1, keepdim=True).add_(n * MEAN_SQUARE_EPS) if products else None
        write_block(o, size_of_channels, target)
    return out.flatten(1, 2).mT


def may_be_overwritten(r: torch.Tensor) -> bool:
    """Whether it has tokens last in memory, each number once, and takes changes here."""
    mutable = not r.is_inference() or torch.is_inference_mode_enabled()
    return mutable and r.stride(1) == 1 and 0 not in r.stride()


def states_of_products(state: torch.Tensor, n: int, centred: bool) -> torch.Tensor:
    """For products `[4 n]` without factors, as [`multiply_neighbours`] makes them."""
    state = state * factors_of_columns(state, n)
    return centre(state) if centred else state


def factors_of_columns(state: torch.Tensor, n: int) -> torch.Tensor:
    """`[4 n]`, what products of `n` channels are multiplied by."""
    return factors_like(state[..., :n]).expand(-1, n).flatten()


def centre(state: torch.Tensor) -> torch.Tensor:
    """What is read of a centred state is centred."""
    return state - state.mean(2, keepdim=True)


def blocks_of(batch_size: int, length: int, sequences: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and tokens that are read at a time."""
    for first in range(0, batch_size, sequences):
        for start in range(0, length, size):
            yield slice(first, first + sequences), slice(start, start + size)


def sequences_and_tokens(batch_size: int, channels: int, length: int, at_once: int) -> tuple[int, int]:
    """How many sequences, and how many tokens of each, are read at a time: several sequences only if whole."""
    blocks = max(round(channels * length / at_once), 1)
    groups = batch_size if blocks > 1 else max(round(batch_size * channels * length / at_once), 1)
    size = -(-length // (blocks * ALIGNMENT)) * ALIGNMENT
    return -(-batch_size // groups), length if blocks == 1 else min(size, length)


def empty_tokens_last(x: torch.Tensor, rows: int) -> torch.Tensor:
    """`[rows, B, T]` for tokens `[B, T, ...]`: those of all sequences in a row, one matrix for what projects them."""
    tokens = x.shape[:2].numel()
    return x.new_empty(rows, tokens + PADDING)[:, :tokens].unflatten(1, x.shape[:2])


def empty_heads(x: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """`[B, H, width, T]` of the same memory."""
    return empty_tokens_last(x, num_heads * width).unflatten(0, (num_heads, width)).permute(2, 0, 1, 3)


def part_of(scratch: torch.Tensor, block: torch.Tensor) -> tuple[slice, slice, slice]:
    """Of `scratch` `[rows, ..., size]` what a block `[B, H, ..., T]` needs, `[B * H, ..., T]`."""
    return slice(block.shape[:2].numel()), slice(scratch.shape[1]), slice(block.shape[-1])


def feature_maker(feature_map: str, r: torch.Tensor, rows: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What maps `[B, H, n, T]` to `[B * H, K, T]` for up to `rows` heads and `size` tokens."""
    if feature_map != QUADRATIC:
        return lambda x: (F.silu(x) if feature_map == "silu" else x).flatten(0, 1)
    n = r.shape[3]
    circles = r.new_empty(rows, n + PRODUCTS - 1, size)
    products = r.new_empty(rows, PRODUCTS * n, size)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        circle, features = circles[part_of(circles, x)], products[part_of(products, x)]
        fill_circle(circle.unflatten(0, x.shape[:2]), x)
        multiply_neighbours(circle, features.unflatten(1, (PRODUCTS, n)))
        return features

    return multiply


def block_writer(
    norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, n: int, reads: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], None]:
    """What normalises the reads `[B * H, V, T]` of a block into a target `[B, H, V, T]`; reads become scratch.

    With products the second argument is `n` times the mean square of the channels, `[B * H, 1, T]`, which is still to
    be divided by.
    """
    value_dim = reads.shape[1]

    def divide(o: torch.Tensor, square: torch.Tensor | None, target: torch.Tensor) -> None:
        target.copy_((o if square is None else o.mul_(square.reciprocal_().mul_(n))).view_as(target))

    if norm_weight is None or norm_bias is None:
        return divide
    squares = torch.empty_like(reads)
    # the root of the sum of squares is divided by, not of their mean
    weight = norm_weight.to(reads.dtype).view(-1, value_dim, 1) * value_dim**0.5
    bias = norm_bias.to(reads.dtype).view(-1, value_dim, 1)

    def normalize(o: torch.Tensor, square: torch.Tensor | None, target: torch.Tensor) -> None:
        scale = torch.mul(o, o, out=squares[part_of(squares, target)]).sum(1, keepdim=True)
        if square is None:
            scale.add_(eps * value_dim)
        else:  # divided by the mean square before the norm: as if all but `eps` were multiplied by it
            scale.addcmul_(square, square, value=eps * value_dim / n**2)
        torch.add(o.mul_(scale.rsqrt_()).view_as(target).mul_(weight), bias, out=target)

    return normalize


def fill_circle(circle: torch.Tensor, channels: torch.Tensor) -> None:
    """`[B, H, n + 3, T]` from `[B, H, n, T]`: behind the last channel the first ones again."""
    n, rows = channels.shape[2], circle.shape[2]
    circle[:, :, :n] = channels
    for start in range(n, rows, n):
        circle[:, :, start : start + n] = channels[:, :, : rows - start]


def multiply_neighbours(circle: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """As `map_features`, without factors and mean square: `[B * H, n + 3, T]` to `[B * H, 4, n, T]`."""
    n = result.shape[2]
    return torch.mul(circle[:, None, :n], circle.unfold(1, n, 1).mT, out=result)
