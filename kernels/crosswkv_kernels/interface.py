"""Public functions: they check their arguments, choose a backend and call it. Nothing below them checks again."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from .chunked import wkv7_chunked
from .reference import compute_dtype, wkv7_reference

MODES = ("auto", "chunk", "recurrent")
BACKENDS = ("auto", "triton", "chunked", "reference")
TRITON_DEVICES = ("cuda", "xpu")  # torch calls AMD's GPUs cuda too
RECURRENT_LENGTH = 64  # tokens, up to which inference goes token by token in one launch


def wkv7(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    mode: str = "auto",
    backend: str = "auto",
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """RWKV-7's generalized delta rule (equation 13 of *Cross-attention for State-based model RWKV-7*).

        S_t = S_{t-1} (diag(exp(w_t)) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t
        o_t = S_t r_t

    Differentiable in every tensor argument, `initial_state` and the returned state included.

    Args:
        r: receptance `[B, T, H, K]`, or None to compute the state alone.
        w: **log** decay `[B, T, H, K]`, `-exp(-0.5) * sigmoid(.)`, so in (-0.60653, 0]; 0 keeps everything. Below
            -0.60653 the chunked backend loses accuracy; the range is not checked.
        k: replacement key `[B, T, H, K]`.
        v: value `[B, T, H, V]`; V may differ from K.
        kappa: removal key `[B, T, H, K]`, of L2 norm 1 over K, or 0 at tokens that shall do nothing.
        a: in-context learning rate `[B, T, H, K]`, in (0, 1); up to 2 gives the transition negative eigenvalues.
        initial_state: `[B, H, V, K]`, zeros if None.
        output_final_state: return the state behind the last token.
        mode: `chunk` (matrix products), `recurrent` (token by token) or `auto`, which on Triton is `recurrent` for
            inference on at most 64 tokens.
        backend: `triton`, `chunked`, `reference` or `auto`: Triton on CUDA, ROCm and XPU devices unless an input is
            float64, `chunked` elsewhere. Triton has first derivatives only.

    Returns:
        `(o, final_state)`: `o` is `[B, T, H, V]` in the dtype of `v`, or None without `r`. The state `[B, H, V, K]`
        is float32 (float64 if an input is) and None unless `output_final_state` is set or `r` is None.

    A token with `w = 0, k = 0, v = 0, kappa = 0` leaves the state as it is: that is how masked tokens are written.

    Four conventions differ elsewhere:
        - RWKV-LM's `w` is `log(-log decay)`: our `w` is `-exp` of it.
        - flash-linear-attention passes `a=-kappa, b=kappa * a` in the places of `kappa` and `a`.
        - flash-linear-attention's state is `[B, H, K, V]`, the transpose of ours.
        - In a UNet config of Diffusers, `attention_head_dim` means the *number* of heads.

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit, or `mode` or `backend` is unknown, or they exclude each other.
        RuntimeError: the backend asked for by name cannot run here.
    """
    _check_wkv7(r, w, k, v, kappa, a, initial_state)
    tensors = (r, w, k, v, kappa, a, initial_state)
    backend = _choose_backend(mode, backend, tensors)
    run: Callable[..., tuple[torch.Tensor | None, torch.Tensor | None]]
    if backend == "triton":
        from .wkv7_operators import wkv7_triton

        short = k.shape[1] <= RECURRENT_LENGTH and not needs_gradients(tensors)
        run = partial(wkv7_triton, recurrent=mode == "recurrent" or (mode == "auto" and short))
    else:
        run = wkv7_chunked if backend == "chunked" else wkv7_reference
    with exact(k.device):
        return run(r, w, k, v, kappa, a, initial_state=initial_state, output_final_state=output_final_state)


def token_shift_mix(x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Mix each token with the one before it, in `n` ways at once (equations 4 and 5).

    `x_n = x + (shift(x) - x) * mu_n`; `shift` moves the sequence one place and puts zeros before the first token.

    Args:
        x: `[B, T, D]`.
        mu: `[n, D]`; 0 keeps the token, 1 replaces it by the one before.
        previous: `[B, T, D]`, what stands before each token, in the place of `shift(x)`: for sequences that go on
            from an earlier part, or that have gaps.

    Returns:
        `[n, B, T, D]` in the dtype of `x`.

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit.
    """
    _check_tensors({"previous": previous}, x=x, mu=mu)
    _check_dims("[B, T, D]", x=x, previous=previous)
    _check_dims("[n, D]", mu=mu)
    if mu.shape[-1] != x.shape[-1]:
        raise ValueError(f"`mu` must be [n, D] with the D of `x`, got {_shape(mu)} and {_shape(x)}.")
    if previous is None:
        previous = torch.cat((torch.zeros_like(x[:, :1]), x), dim=1)[:, : x.shape[1]]
    elif previous.shape != x.shape:
        raise ValueError(f"`previous` must have the shape of `x`, got {_shape(previous)} and {_shape(x)}.")
    return torch.addcmul(x, previous - x, mu.to(x.dtype)[:, None, None])


def state_readout(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor | None = None,
    eps: float = 64e-5,
) -> torch.Tensor:
    """Read a state that no longer changes, normalise per head, gate (equations 13, 14 and 16).

    `o_t = GroupNorm_H(S r_t) * gate_t`, with one group per head.

    Args:
        r: receptance `[B, T, H, K]`.
        state: `[B, H, V, K]`.
        norm_weight, norm_bias: `[H * V]`, or None, both, for no normalisation.
        gate: `[B, T, H * V]`, or None for no gate.
        eps: added to the variance, > 0; the models use `head_dim * 1e-5`.

    Returns:
        `[B, T, H * V]` in the dtype of `r`. The read and the norm are computed in float32 (float64 if an input is).

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit, or `eps` is not positive.
    """
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("`norm_weight` and `norm_bias` must both be given or both be None, got one; give the other.")
    _check_tensors({"gate": gate, "norm_weight": norm_weight, "norm_bias": norm_bias}, r=r, state=state)
    _check_dims("[B, T, H, K]", r=r)
    _check_dims("[B, H, V, K]", state=state)
    batch_size, length, num_heads, head_dim = r.shape
    if (state.shape[0], state.shape[1], state.shape[3]) != (batch_size, num_heads, head_dim):
        raise ValueError(
            f"`state` must be [B, H, V, K] with the B, H and K of `r`, got {_shape(state)} and {_shape(r)}."
        )
    width = num_heads * state.shape[2]
    for name, norm in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if norm is not None and norm.shape != (width,):
            raise ValueError(f"`{name}` must be [H * V] = [{width}], got {_shape(norm)}.")
    if gate is not None and gate.shape != (batch_size, length, width):
        raise ValueError(f"`gate` must be [B, T, H * V] = {[batch_size, length, width]}, got {_shape(gate)}.")
    if not eps > 0:
        raise ValueError(f"`eps` must be positive, got {eps}; the models use head_dim * 1e-5.")

    dtype = compute_dtype(r, state)
    with exact(r.device):
        o = (r.to(dtype).transpose(1, 2) @ state.to(dtype).mT).transpose(1, 2)  # [B, T, H, V]
        if norm_weight is not None and norm_bias is not None:
            o = F.layer_norm(o, (state.shape[2],), eps=eps).flatten(-2)
            o = torch.addcmul(norm_bias.to(dtype), o, norm_weight.to(dtype))
        else:
            o = o.flatten(-2)
        return (o if gate is None else o * gate).to(r.dtype)


def exact(device: torch.device) -> AbstractContextManager:
    """No autocast inside: the recurrence accumulates in float32 whatever surrounds it."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def needs_gradients(tensors: Sequence[torch.Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def triton_obstacle(tensors: Sequence[torch.Tensor | None]) -> str | None:
    """Why Triton cannot take these tensors, with what to do about it; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton`"
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        return "an input is float64, which Triton's matrix products do not take; use float32"
    from .triton_launch import can_run

    device = next(x.device for x in tensors if x is not None)
    if not can_run(device):
        return f"the tensors are on {device}; move them to a GPU, or set TRITON_INTERPRET=1 before the first import"
    return None


def takes_triton(tensors: Sequence[torch.Tensor | None]) -> bool:
    """What `backend="auto"` asks: on a GPU, where nothing stands in the way."""
    device = next(x.device for x in tensors if x is not None)
    return device.type in TRITON_DEVICES and triton_obstacle(tensors) is None


def _choose_backend(mode: str, backend: str, tensors: Sequence[torch.Tensor | None]) -> str:
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}.")
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "triton":
        obstacle = triton_obstacle(tensors)
        if obstacle is not None:
            raise RuntimeError(
                f"`backend='triton'` was asked for and cannot run: {obstacle}, or use backend='auto' or 'chunked'."
            )
    if (mode, backend) in (("recurrent", "chunked"), ("chunk", "reference")):
        raise ValueError(
            f"`backend={backend!r}` has no mode {mode!r}: 'chunked' works in chunks, 'reference' token by token; "
            "leave one of the two at 'auto'."
        )
    if backend == "auto":
        if takes_triton(tensors):
            return "triton"
        return "reference" if mode == "recurrent" else "chunked"
    return backend


def _check_wkv7(r, w, k, v, kappa, a, initial_state) -> None:
    _check_tensors({"r": r, "initial_state": initial_state}, w=w, k=k, v=v, kappa=kappa, a=a)
    _check_dims("[B, T, H, K]", k=k, r=r, w=w, kappa=kappa, a=a)
    _check_dims("[B, T, H, V]", v=v)
    for name, x in (("r", r), ("w", w), ("kappa", kappa), ("a", a)):
        if x is not None and x.shape != k.shape:
            raise ValueError(f"`{name}` must have the shape [B, T, H, K] of `k`, got {_shape(x)} and {_shape(k)}.")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"`v` must be [B, T, H, V] with the B, T and H of `k`, got {_shape(v)} and {_shape(k)}.")
    batch_size, _, num_heads, head_dim = k.shape
    expected = (batch_size, num_heads, v.shape[-1], head_dim)
    if initial_state is not None and initial_state.shape != expected:
        raise ValueError(
            f"`initial_state` must be [B, H, V, K] = {list(expected)}, got {_shape(initial_state)}; "
            "a state of flash-linear-attention is [B, H, K, V]: transpose its last two dimensions."
        )


def _check_tensors(optional: dict[str, torch.Tensor | None], **required: torch.Tensor) -> None:
    device = None
    given = {name: x for name, x in optional.items() if x is not None}
    for name, x in (required | given).items():
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, torch.Tensor) else None if x is None else type(x).__name__
            raise TypeError(f"`{name}` must be a floating point tensor, got {kind}.")
        device = device or x.device
        if x.device != device:
            raise ValueError(
                f"All tensors must be on one device, got {device} and, for `{name}`, {x.device}; move it."
            )


def _check_dims(layout: str, **tensors: torch.Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.ndim != layout.count(",") + 1:
            raise ValueError(f"`{name}` must be {layout}, got {_shape(x)}.")


def _shape(x: torch.Tensor) -> list[int]:
    return list(x.shape)
