"""How a state is read, in plain PyTorch: any device, any order of derivative."""

import torch
import torch.nn.functional as F

from .feature_maps import map_features
from .reference import compute_dtype


def read_plainly(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    feature_map: str,
) -> torch.Tensor:
    """What `state_readout` gives without a gate, `[B, T, H * V]`, in at least float32."""
    return group_norm(read_heads(r, state, feature_map), norm_weight, norm_bias, eps)


def read_heads(r: torch.Tensor, state: torch.Tensor, feature_map: str) -> torch.Tensor:
    """`[B, T, H, V]`, heads before tokens in memory."""
    dtype = compute_dtype(r, state)
    r_by_head = map_features(r.to(dtype), feature_map).transpose(1, 2)
    return (r_by_head @ state.to(dtype).mT).transpose(1, 2)


def group_norm(o: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """`[B, T, H, V]` to `[B, T, H * V]`, normalised per head unless weight and bias are None."""
    if weight is None or bias is None:
        return o.flatten(-2)
    return torch.addcmul(bias.to(o.dtype), F.layer_norm(o, o.shape[-1:], eps=eps).flatten(-2), weight.to(o.dtype))
