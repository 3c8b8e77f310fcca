"""What scans of a state alone in chunks share, forward and backward, whatever their keys and decays are."""

import torch


def unit_inverse(L: torch.Tensor) -> torch.Tensor:
    """`(I + L)^-1` of what is below the diagonal of `[N, G, C, C]`."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)


def drop_subnormal(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Zeros for numbers so small (1e-31 in float32) that products with them would be subnormal.

    On their way to the first tokens of a text gradients decay through that range, in which CPUs are slow.
    """
    limits = torch.finfo(x.dtype)
    return torch.hardshrink(x, limits.tiny / limits.eps, out=out)
