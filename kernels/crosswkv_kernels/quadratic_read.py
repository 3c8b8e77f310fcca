"""How a CPU reads a state with `quadratic` features where no gradient is needed.

Features are four times as many as channels: they are made for a few hundred tokens at a time, which stay in the
processor's cache, and with channels before tokens in memory, so that every product runs along tokens.
"""

import torch

from .feature_maps import PRODUCTS, factors_like, lengthened

FEATURES_AT_ONCE = 2**21  # of 2**18 to 2**22 the fastest at Stable Diffusion's sizes on two cores


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
    x = r.permute(0, 2, 3, 1).contiguous()  # [B, H, n, T]
    n, length = x.shape[2:]
    factors = factors_like(r).expand(-1, n).flatten()
    state = (state * factors).flatten(0, 1)  # [B * H, V, K]
    if norm_bias is not None:  # what is read of a centred state is centred
        state = state - state.mean(1, keepdim=True)
    out = x.new_empty(batch_size, num_heads * value_dim, length)
    size = max(FEATURES_AT_ONCE // max(batch_size * num_heads * PRODUCTS * n, 1), 1)
    for start in range(0, length, size):
        tokens = slice(start, start + size)
        read = torch.bmm(state, products(x[..., tokens]).flatten(0, 1))  # [B * H, V, tokens]
        if norm_bias is not None:
            read.mul_(read.square().mean(1, keepdim=True).add_(eps).rsqrt_())
        read = read.view(batch_size, num_heads * value_dim, -1)
        if norm_weight is None or norm_bias is None:
            out[..., tokens] = read
        else:
            weight, bias = norm_weight.to(x.dtype)[:, None], norm_bias.to(x.dtype)[:, None]
            torch.addcmul(bias, read, weight, out=out[..., tokens])
    return out.mT


def products(x: torch.Tensor) -> torch.Tensor:
    """As `map_features`, without its factors: `[B, H, n, T]` to `[B, H, 4 n, T]`."""
    n = x.shape[2]
    partners = lengthened(x, 2)
    result = x.new_empty(*x.shape[:2], PRODUCTS * n, x.shape[3])
    for j, part in enumerate(result.chunk(PRODUCTS, dim=2)):
        torch.mul(x, partners[:, :, j : j + n], out=part)
    return result
