"""The recurrence as a loop that can be held against the paper, one line per equation."""

from contextlib import AbstractContextManager, nullcontext

import torch


def wkv7_reference(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The same function as [`wkv7`], one token at a time: slow, exact, the specification of every other backend.

    It computes in float32 at least, in float64 if any input is float64, and backpropagates by autograd.
    """
    dtype = compute_dtype(r, w, k, v, kappa, a, initial_state)
    S = zero_state(v, kappa.shape[-1], dtype) if initial_state is None else initial_state.to(dtype)
    k = whole_keys(k.to(dtype), kappa.to(dtype))
    outputs = []
    for t in range(k.shape[1]):
        w_t, k_t, kappa_t, a_t = (x[:, t].to(dtype).unsqueeze(-2) for x in (w, k, kappa, a))  # [B, H, 1, K]
        v_t = v[:, t].to(dtype).unsqueeze(-1)  # [B, H, V, 1]
        removed = (S * kappa_t).sum(-1, keepdim=True)  # S kappa^T: [B, H, V, 1]
        S = S * w_t.exp() - removed * (a_t * kappa_t) + v_t * k_t
        if r is not None:
            outputs.append((S * r[:, t].to(dtype).unsqueeze(-2)).sum(-1))  # [B, H, V]
    o = None if r is None else torch.stack(outputs, dim=1).to(v.dtype) if outputs else torch.zeros_like(v)
    return o, S if output_final_state or r is None else None


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def zero_state(v: torch.Tensor, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    batch_size, _, num_heads, value_dim = v.shape
    return torch.zeros(batch_size, num_heads, value_dim, head_dim, dtype=dtype, device=v.device)


def whole_keys(k: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
    """Replacement keys `[..., K]`, from multiples `[..., 1]` of the removal keys too."""
    return k if k.shape[-1] == kappa.shape[-1] else k * kappa


def exact(device: torch.device) -> AbstractContextManager:
    """No autocast inside: the recurrence accumulates in float32 whatever surrounds it."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
