"""How a CPU reads a state with `quadratic` features where no gradient is needed.

Features are four times as many as channels: they are made for a few hundred tokens at a time, always in the same
memory, which stays in the processor's cache, and with channels before tokens, so that every product runs along tokens.
"""

import torch

from .feature_maps import MEAN_SQUARE_EPS, PRODUCTS, factors_like

FEATURES_AT_ONCE = 2**20  # of 2**18 to 2**22 the fastest at Stable Diffusion's sizes on two cores
ALIGNMENT = 64  # of the number of tokens at a time: rows begin where vectors and cache lines do
PADDING = 16  # numbers between rows of the result: rows that are powers of two apart share few lines of a cache


def can_read(r: torch.Tensor, *others: torch.Tensor | None) -> bool:
    if r.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (r, *others)))


def read_quadratic(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    overwrite_r: bool,
) -> torch.Tensor:
    """What `state_readout` gives for channels `[B, T, H, n]` without a gate: `[B, T, H * V]`, tokens last in memory.

    It computes in the dtype of `r` and `state`, which is one.
    """
    batch_size, num_heads, value_dim, _ = state.shape
    length, n = r.shape[1], r.shape[3]
    heads = batch_size * num_heads
    channels = r.permute(0, 2, 3, 1)  # [B, H, n, T]
    state = state * factors_like(r).expand(-1, n).flatten()
    if norm_bias is not None:  # what is read of a centred state is centred
        state = state - state.mean(2, keepdim=True)
    state = state.flatten(0, 1)
    if overwrite_r and value_dim == n and r.stride(1) == 1 and 0 not in r.stride():
        out = channels
    else:
        out = empty_tokens_last(r, num_heads * value_dim).view(num_heads, value_dim, batch_size, length)
        out = out.permute(2, 0, 1, 3)  # [B, H, V, T]
    blocks = max(round(heads * PRODUCTS * n * length / FEATURES_AT_ONCE), 1)
    size = -(-length // (blocks * ALIGNMENT)) * ALIGNMENT
    circles = r.new_empty(batch_size, num_heads, n + PRODUCTS - 1, size)
    products, reads = r.new_empty(heads, PRODUCTS, n, size), r.new_empty(heads, value_dim, size)
    if norm_weight is not None and norm_bias is not None:
        squares = torch.empty_like(reads)
        # the root of the sum of squares is divided by, not of their mean
        norm_weight = norm_weight.to(r.dtype).view(num_heads, value_dim, 1) * value_dim**0.5
        norm_bias = norm_bias.to(r.dtype).view(num_heads, value_dim, 1)
    for start in range(0, length, max(size, 1)):
        tokens, block = slice(start, start + size), slice(min(size, length - start))
        circle = circles[..., block]
        fill_circle(circle, channels[..., tokens])
        features = multiply_neighbours(circle.flatten(0, 1), products[..., block]).flatten(1, 2)
        o = torch.bmm(state, features, out=reads[..., block])
        square = features[:, :n].sum(1, keepdim=True).add_(n * MEAN_SQUARE_EPS)  # n times the channels' mean square
        if norm_weight is None or norm_bias is None:
            o.mul_(square.reciprocal_().mul_(n))
            out[..., tokens] = o.view_as(out[..., tokens])
            continue
        # divided by the mean square before the norm: as if all but `eps` were multiplied by it
        of_reads = torch.mul(o, o, out=squares[..., block]).sum(1, keepdim=True)
        o.mul_(square.square_().mul_(eps * value_dim / n**2).add_(of_reads).rsqrt_())
        torch.add(o.view_as(out[..., tokens]).mul_(norm_weight), norm_bias, out=out[..., tokens])
    return out.flatten(1, 2).mT


def empty_tokens_last(x: torch.Tensor, rows: int) -> torch.Tensor:
    """`[rows, B, T]` for tokens `[B, T, ...]`: those of all sequences in a row, one matrix for what projects them."""
    tokens = x.shape[:2].numel()
    return x.new_empty(rows, tokens + PADDING)[:, :tokens].unflatten(1, x.shape[:2])


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
