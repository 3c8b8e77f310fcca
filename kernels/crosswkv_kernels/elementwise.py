"""What stands before and behind the scan, in plain PyTorch: any device, any order of derivative.

At least float32 inside, float64 if an input is; the results are rounded once, at the end.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .cpu_read import can_read, is_eager, read_state
from .cpu_read_gradients import ReadState
from .feature_maps import PRODUCTS, QUADRATIC, SMALLEST_NORM, map_features, number_of_features
from .plain_read import group_norm, read_heads, read_plainly
from .reference import compute_dtype, whole_keys


class Write(NamedTuple):
    """What a sequence of tokens writes: the arguments of [`wkv7`] besides the receptance."""

    w: torch.Tensor  # [B, T, H, K], or [B, T, H, 1]: one for all channels of a head
    k: torch.Tensor  # [B, T, H, K], or [B, T, H, 1]: what kappa is multiplied by
    v: torch.Tensor  # [B, T, H, V]
    kappa: torch.Tensor  # [B, T, H, K]
    a: torch.Tensor  # [B, T, H, K] or [B, T, H, 1]

    @property
    def keys(self) -> torch.Tensor:
        """The replacement keys, `[B, T, H, K]` always."""
        mapped = self.mapped()
        return whole_keys(mapped.k, mapped.kappa)

    @property
    def head_dim(self) -> int:
        """K."""
        return self.kappa.shape[-1]

    def mapped(self) -> "Write":
        """Keys are features already."""
        return self


class ChannelWrite(Write):
    """The same with keys before their feature map `quadratic`: for [`final_state`], not for [`wkv7`].

    `kappa` holds their channels, `[B, T, H, n]`. The removal key is their features, of L2 norm 1; `k`, `[B, T, H, 1]`,
    is what the features are multiplied by to be the replacement key.
    """

    @property
    def head_dim(self) -> int:
        """K = 4 n."""
        return PRODUCTS * self.kappa.shape[-1]

    def mapped(self) -> Write:
        """The same with features, `[B, T, H, K]`."""
        k, kappa = multiples(map_features(self.kappa.to(compute_dtype(*self)), QUADRATIC), self.k)
        return Write(self.w, k, self.v, kappa, self.a)


def multiples(key: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The removal key of norm 1, and before it what it is multiplied by to be `key * share`."""
    size = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
    return size * share, key / size.clamp_min(SMALLEST_NORM)


def token_shift_mix(x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
    dtype, output_dtype = compute_dtype(x, mu, previous), x.dtype
    x, mu = x.to(dtype), mu.to(dtype)
    if previous is None:
        previous = torch.cat((torch.zeros_like(x[:, :1]), x), dim=1)[:, : x.shape[1]]
    return torch.addcmul(x, previous.to(dtype) - x, mu[:, None, None]).to(output_dtype)


def state_writes(
    decay: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first_value: torch.Tensor | None,
    value_share: torch.Tensor | None,
    k_k: torch.Tensor | None,
    k_a: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
    channels_may_stay: bool,
) -> Write:
    dtype = compute_dtype(decay, rate, key, value, first_value, value_share, k_k, k_a)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))

    def kept(x: torch.Tensor) -> torch.Tensor:
        return x if mask is None else x.masked_fill(~mask[:, :, None], 0)

    w = kept(-math.exp(-0.5) * torch.sigmoid(decay.to(dtype)))  # (8)
    a = heads(kept(torch.sigmoid(rate.to(dtype))))  # (9)
    if first_value is not None and value_share is not None:  # (10)
        mixed = torch.lerp(value.to(dtype), first_value.to(dtype), torch.sigmoid(value_share.to(dtype)))
        value = mixed.to(value.dtype)
    w, v, key = heads(w), heads(kept(value)), heads(kept(key.to(dtype)))  # (12)
    share = 1 + (a - 1) * heads(k_a.to(dtype))  # (11)
    one_direction = keys_are_multiples(rate, k_k, num_heads, number_of_features(feature_map, key.shape[-1]))
    if channels_may_stay and one_direction and feature_map == QUADRATIC and not torch.compiler.is_compiling():
        return ChannelWrite(w, share, v, key, a)
    key = map_features(key, feature_map)  # of zeros: zeros
    if one_direction:
        k, kappa = multiples(key, share)
    else:
        k, kappa = key * share, F.normalize(key if k_k is None else key * heads(k_k.to(dtype)), dim=-1)
    return Write(w, k, v, kappa, a)


def are_multiples(w: torch.Tensor, k: torch.Tensor, kappa: torch.Tensor, a: torch.Tensor) -> bool:
    """Whether decay, rate and key are one number per head, `[B, T, H, 1]`: a state alone has less to do then."""
    return kappa.shape[-1] > 1 and all(x.shape[-1] == 1 for x in (w, k, a))


def keys_are_multiples(rate: torch.Tensor, k_k: torch.Tensor | None, num_heads: int, head_dim: int) -> bool:
    """Whether `k` is a number per head: both keys of a token have one direction there, and more than one feature."""
    return k_k is None and rate.shape[-1] == num_heads and head_dim > 1


def state_readout(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    eps: float,
    feature_map: str,
    overwrite_r: bool,
) -> torch.Tensor:
    tensors = (r, state, norm_weight, norm_bias)
    if can_read(*tensors):
        dtype = compute_dtype(r, state)
        overwrite_r = overwrite_r or r.dtype != dtype
        o = read_state(r.to(dtype), state.to(dtype), norm_weight, norm_bias, eps, feature_map, overwrite_r)
    elif feature_map == QUADRATIC and is_eager(r):
        o = ReadState.apply(*tensors, eps)
    elif norm_weight is None and gate is not None:  # the gate first: the product gets its order in memory
        o = read_heads(r, state, feature_map)
        return (gate.unflatten(-1, o.shape[2:]) * o).flatten(-2).to(r.dtype)
    else:
        o = read_plainly(*tensors, eps, feature_map)
    return (o if gate is None else o * gate).to(r.dtype)


def scan_readout(
    o: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r_k: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    dtype = compute_dtype(o, r, k, v, r_k, gate)
    bonus = (r.to(dtype) * k.to(dtype) * r_k.to(dtype)).sum(-1, keepdim=True) * v.to(dtype)  # (15)
    normed = group_norm(o.to(dtype), norm_weight, norm_bias, eps) + bonus.flatten(-2)  # (14)
    rest = gate.shape[1] - o.shape[1]
    if rest:  # a norm of zeros is zero
        at_rest = normed.new_zeros(gate.shape[-1]) if norm_bias is None else norm_bias.to(dtype)
        normed = torch.cat((normed, at_rest.expand(len(gate), rest, -1)), dim=1)
    return (normed * gate).to(gate.dtype)  # (16)
