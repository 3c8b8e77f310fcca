"""What the chunks of a state alone begin with, whether decays belong to channels or to heads."""

from typing import NamedTuple

import torch


class Decays(NamedTuple):
    """Of tokens in chunks, with c the running sum of log decays and all relative to that at mid-chunk."""

    before: torch.Tensor  # e^(c_(t-1) - middle), [N, G, C, K or 1]
    after: torch.Tensor  # e^(c_t - middle)
    inverse: torch.Tensor  # e^(middle - c_t)
    enter: torch.Tensor  # e^middle, [N, G, 1, K or 1]
    leave: torch.Tensor  # e^(c_last - middle)


def decays_of(w: torch.Tensor) -> Decays:
    """From log decays `[N, G, C, K]`, or `[N, G, C, 1]` where a head has one."""
    c = w.cumsum(2)
    middle = c[:, :, w.shape[2] // 2, None]
    after = (c - middle).exp_()
    before = torch.cat(((-middle).exp(), after[:, :, :-1]), 2)
    return Decays(before, after, after.reciprocal(), middle.exp(), after[:, :, -1:])


def unit_inverse(L: torch.Tensor) -> torch.Tensor:
    """`(I + L)^-1` of what is below the diagonal of `[N, G, C, C]`."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)


def sum_from_behind(d_c: torch.Tensor) -> torch.Tensor:
    """The gradient of what `c` is the running sum of, from that of `c`."""
    return d_c.flip(2).cumsum(2).flip(2)


def drop_subnormal(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Zeros for numbers so small (1e-31 in float32) that products with them would be subnormal.

    On their way to the first tokens of a text gradients decay through that range, in which CPUs are slow.
    """
    limits = torch.finfo(x.dtype)
    return torch.hardshrink(x, limits.tiny / limits.eps, out=out)
