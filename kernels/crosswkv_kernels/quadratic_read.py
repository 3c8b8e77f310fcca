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
) -> torch.Tensor:
    """What `state_readout` gives for channels `[B, T, H, n]` without a gate: `[B, T, H * V]`, tokens last in memory.

    It computes in the dtype of `r` and `state`, which is one.
    """
    batch_size, num_heads, value_dim, _ = state.shape
    length, n = r.shape[1], r.shape[3]
    channels = r.permute(0, 2, 3, 1)  # [B, H, n, T]
    factors = factors_like(r).expand(-1, n).flatten()
    state = (state * factors).flatten(0, 1)  # [B * H, V, K]
    if norm_bias is not None:  # what is read of a centred state is centred
        state = state - state.mean(1, keepdim=True)
    out = r.new_empty(len(state), value_dim, length + PADDING)[..., :length]
    blocks = max(round(len(state) * PRODUCTS * n * length / FEATURES_AT_ONCE), 1)
    size = -(-length // (blocks * ALIGNMENT)) * ALIGNMENT
    x = r.new_empty(batch_size, num_heads, n, size)
    features, read = r.new_empty(len(state), PRODUCTS * n, size), r.new_empty(len(state), value_dim, size)
    weight, bias = (None if p is None else per_value(p, state) for p in (norm_weight, norm_bias))
    for start in range(0, length, max(size, 1)):
        tokens = slice(start, start + size)
        count = min(size, length - start)
        make_products(x[..., :count].copy_(channels[..., tokens]).flatten(0, 1), features[..., :count])
        o = torch.bmm(state, features[..., :count], out=read[..., :count])
        mean_square = features[:, :n, :count].mean(1, keepdim=True).add_(MEAN_SQUARE_EPS)
        if norm_bias is None:
            o.div_(mean_square)
        else:  # divided by it before the norm: as if all but `eps` were multiplied by it
            o.mul_(mean_square.square_().mul_(eps).add_(o.square().mean(1, keepdim=True)).rsqrt_())
        if weight is None or bias is None:
            out[..., tokens] = o
        else:
            torch.addcmul(bias, o, weight, out=out[..., tokens])
    return out.view(batch_size, num_heads * value_dim, length).mT


def per_value(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """`[H * V]` to `[B * H, V, 1]`."""
    value_dim = state.shape[1]
    return x.to(state.dtype).view(-1, value_dim).repeat(len(state) * value_dim // len(x), 1).unsqueeze(-1)


def make_products(x: torch.Tensor, result: torch.Tensor) -> None:
    """As `map_features`, without factors and mean square: `[B * H, n, T]` into `[B * H, 4 n, T]`."""
    n = x.shape[1]
    for j, part in enumerate(result.chunk(PRODUCTS, dim=1)):
        ahead = j % n
        torch.mul(x[:, : n - ahead], x[:, ahead:], out=part[:, : n - ahead])
        torch.mul(x[:, n - ahead :], x[:, :ahead], out=part[:, n - ahead :])
