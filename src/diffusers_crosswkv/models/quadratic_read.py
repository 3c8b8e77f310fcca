"""How a CPU reads a state with `quadratic` features where no gradient is needed.

Features are four times as many as channels: they are made for a few hundred tokens at a time, which stay in the
processor's cache, and with channels before tokens in memory, so that every product runs along tokens.
"""

import torch

from .feature_maps import PRODUCTS, in_circle

FEATURES_AT_ONCE = 2**21  # of 2**18 to 2**22 the fastest at Stable Diffusion's sizes on two cores


def can_read(channels: torch.Tensor) -> bool:
    return channels.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def read_quadratic(
    channels: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """What `state_readout` gives for the features of `channels` `[B, T, H * n]`.

    The result `[B, T, H * V]` has its tokens last in memory.

    `weight` and `bias` `[H * V]` are those of the normalisation, None without one.
    """
    batch_size, num_heads, value_dim, _ = state.shape
    dtype = torch.promote_types(torch.promote_types(channels.dtype, state.dtype), torch.float32)
    x = channels.unflatten(-1, (num_heads, -1)).permute(0, 2, 3, 1)  # [B, H, n, T]
    x = x.to(dtype, memory_format=torch.contiguous_format, copy=True)
    n, length = x.shape[2:]
    with torch.autocast("cpu", enabled=False):
        factors = x.new_full((PRODUCTS, 1), 2**0.5 * n**-0.25)
        factors[0] = n**-0.25
        state = (state.to(dtype) * factors.expand(-1, n).flatten()).flatten(0, 1)  # [B * H, V, K]
        if bias is not None:  # what is read of a centred state is centred
            state = state - state.mean(1, keepdim=True)
        out = x.new_empty(batch_size, num_heads * value_dim, length)
        size = max(FEATURES_AT_ONCE // (batch_size * num_heads * PRODUCTS * n), 1)
        for start in range(0, length, size):
            tokens = slice(start, start + size)
            read = torch.bmm(state, products(x[..., tokens]).flatten(0, 1))  # [B * H, V, tokens]
            if bias is not None:
                read.mul_(read.square().mean(1, keepdim=True).add_(eps).rsqrt_())
            read = read.view(batch_size, num_heads * value_dim, -1)
            if weight is None or bias is None:
                out[..., tokens] = read
            else:
                torch.addcmul(bias.to(dtype)[:, None], read, weight.to(dtype)[:, None], out=out[..., tokens])
    return out.mT.to(channels.dtype)


def products(x: torch.Tensor) -> torch.Tensor:
    """As `feature_maps.quadratic`, without its factors: `[B, H, n, T]` to `[B, H, 4 n, T]`."""
    n = x.shape[2]
    circle = in_circle(x, dim=2)
    result = x.new_empty(*x.shape[:2], PRODUCTS * n, x.shape[3])
    for j, part in enumerate(result.chunk(PRODUCTS, dim=2)):
        torch.mul(x, circle[:, :, j : j + n], out=part)
    return result
