"""Public functions: they check their arguments, choose a backend and call it. Nothing below them checks again."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

from . import elementwise
from .backends import choose_scan_backend, takes_triton
from .checks import (
    check_channel_write,
    check_dims,
    check_scan_readout,
    check_state_readout,
    check_state_writes,
    check_tensors,
    check_wkv7,
    shape_of,
)
from .chunked import wkv7_chunked
from .chunked_state import final_state_chunked
from .elementwise import ChannelWrite, Write
from .feature_maps import number_of_features
from .reference import exact, wkv7_reference

with suppress(ImportError):  # no Triton for this system: `takes_triton` never says yes
    from . import triton_mix, triton_readout, triton_scan_readout, triton_writes, wkv7_operators

RECURRENT_LENGTH = 64  # tokens, up to which inference on Triton goes token by token, in one launch


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
            -0.60653 chunks lose accuracy, and from about -2 on they may be wrong or not finite; the range is not
            checked. `[B, T, H, 1]` is one decay for all channels of a head.
        k: replacement key `[B, T, H, K]`; or `[B, T, H, 1]`, what the removal key is multiplied by to be it.
        v: value `[B, T, H, V]`; V may differ from K.
        kappa: removal key `[B, T, H, K]`, of L2 norm 1 over K, or 0 at tokens that shall do nothing.
        a: in-context learning rate `[B, T, H, K]` or, one for a head, `[B, T, H, 1]`; in (0, 1), up to 2 gives the
            transition negative eigenvalues.
        initial_state: `[B, H, V, K]`, zeros if None.
        output_final_state: return the state behind the last token.
        mode: `chunk` (matrix products), `recurrent` (token by token) or `auto`, which on Triton is `recurrent` for
            inference on at most 64 tokens.
        backend: `triton`, `chunked`, `reference` or `auto`: Triton on CUDA, ROCm and XPU devices unless an input is
            float64 or a head wider than 128, `chunked` elsewhere. Triton's gradients have no gradients of their own;
            its chunks multiply in tf32 if an input has 16 bits, so that a scan in parts agrees to about 1e-3.

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
    check_wkv7(r, w, k, v, kappa, a, initial_state)
    tensors = (r, w, k, v, kappa, a, initial_state)
    chosen = choose_scan_backend(mode, backend, tensors, (kappa.shape[3], v.shape[3]))
    run: Callable[..., tuple[torch.Tensor | None, torch.Tensor | None]]
    if chosen == "triton":
        trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        may_be_short = mode == "auto" and not trained and not torch.compiler.is_exporting()
        short = may_be_short and k.shape[1] <= RECURRENT_LENGTH
        run = partial(wkv7_operators.wkv7_triton, recurrent=mode == "recurrent" or short)
    elif chosen == "chunked" and r is None and k.shape[1] > 0 and not torch.compiler.is_compiling():
        with exact(k.device):
            return None, final_state_chunked(Write(w, k, v, kappa, a), initial_state)
    else:
        run = wkv7_chunked if chosen == "chunked" else wkv7_reference
    with exact(k.device):
        return run(r, w, k, v, kappa, a, initial_state=initial_state, output_final_state=output_final_state)


def final_state(write: Write, initial_state: torch.Tensor | None = None) -> torch.Tensor:
    """The state `[B, H, V, K]` behind what [`state_writes`] returned: as [`wkv7`] without a receptance.

    Args:
        write: keys as features or, a [`ChannelWrite`], as channels.
        initial_state: `[B, H, V, K]`, zeros if None.

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit.
    """
    if isinstance(write, ChannelWrite):
        check_channel_write(write, initial_state)
        if write.kappa.device.type == "cpu" and write.kappa.shape[1] > 0 and not torch.compiler.is_compiling():
            with exact(write.kappa.device):
                return final_state_chunked(write, initial_state)
    _, state = wkv7(None, *write.mapped(), initial_state=initial_state)
    assert state is not None
    return state


def token_shift_mix(
    x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """Mix each token with the one before it, in `n` ways at once (equations 4 and 5).

    `x_n = x + (shift(x) - x) * mu_n`; `shift` moves the sequence one place and puts zeros before the first token.

    Args:
        x: `[B, T, D]`.
        mu: `[n, D]`; 0 keeps the token, 1 replaces it by the one before.
        previous: `[B, T, D]`, what stands before each token, in the place of `shift(x)`: for sequences that go on
            from an earlier part, or that have gaps.
        backend: `triton` (one kernel, on GPUs), `chunked` (plain PyTorch) or `auto`, Triton on GPUs where it can
            run. Triton's gradients have no gradients of their own.

    Returns:
        `[n, B, T, D]` in the dtype of `x`, computed in float32 (float64 if an input is).

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit, or `backend` is unknown.
        RuntimeError: the backend asked for by name cannot run here.
    """
    check_tensors({"previous": previous}, x=x, mu=mu)
    check_dims("[B, T, D]", x=x, previous=previous)
    check_dims("[n, D]", mu=mu)
    if mu.shape[-1] != x.shape[-1]:
        raise ValueError(f"`mu` must be [n, D] with the D of `x`, got {shape_of(mu)} and {shape_of(x)}.")
    if previous is not None and previous.shape != x.shape:
        raise ValueError(f"`previous` must have the shape of `x`, got {shape_of(previous)} and {shape_of(x)}.")
    if takes_triton(backend, (x, mu, previous)):
        return triton_mix.token_shift_mix(x, mu, previous)
    with exact(x.device):
        return elementwise.token_shift_mix(x, mu, previous)


def state_writes(
    decay: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    k_k: torch.Tensor | None,
    k_a: torch.Tensor,
    num_heads: int,
    *,
    first_value: torch.Tensor | None = None,
    value_share: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    feature_map: str = "identity",
    channels_may_stay: bool = False,
    backend: str = "auto",
) -> Write:
    """From what the projections return to what a scan takes (equations 8 to 12).

        w = -exp(-0.5) sigmoid(decay)                                     (8)
        a = sigmoid(rate)                                                 (9)
        v = lerp(value, first_value, sigmoid(value_share))                (10)
        kappa = f(key) * k_k / |f(key) * k_k|                             (11), f the feature map, norm per head
        k = f(key) * (1 + (a - 1) * k_a)                                  (11)

    A key of zeros has a removal key of zeros: norms below 1e-12 count as 1e-12.

    Args:
        decay: `[B, T, H * K]`, what the decay's LoRA returns, bias included; or `[B, T, H]`, one for each head.
        rate: `[B, T, H * K]` or `[B, T, H]`, the same for the in-context learning rate.
        key: `[B, T, H * n]`, projected; n = K but for the feature map `quadratic`, where K = 4 n.
        value: `[B, T, H * V]`, projected.
        k_k: `[H * K]`, or None for ones.
        k_a: `[H * K]` or, if `rate` has one number for a head, `[H]`.
        num_heads: H.
        first_value: `[B, T, H * V]`, the value of the group's first layer; without it `v` is the value.
        value_share: `[B, T, H * V]`, how much of it to take, before the sigmoid. Both or none.
        mask: `[B, T]` boolean, True keeps; masked tokens write nothing: all five results are zero there, but for `k`
            of a [`ChannelWrite`], whose features are.
        feature_map: `identity`, `silu` or `quadratic`, applied to the key of each head: see [`map_features`].
        channels_may_stay: whether the result may be a [`ChannelWrite`], for [`final_state`] alone: in plain PyTorch
            that is faster, and takes less memory, where `quadratic` keys have one direction. [`wkv7`] must not get it.
        backend: `triton` (one kernel, on GPUs), `chunked` (plain PyTorch) or `auto`, Triton on GPUs where it can
            run. Triton's gradients have no gradients of their own.

    `decay`, `rate` and `value_share` may be expanded: a LoRA of rank 0 returns its bias for every token.

    Returns:
        `Write(w, k, v, kappa, a)`, `[B, T, H, K]`, `v` `[B, T, H, V]`, and `w` and `a` `[B, T, H, 1]` if each head
        has one. If it has one rate, and `k_k` is None, both keys have one direction: then `k` too is `[B, T, H, 1]`,
        what `kappa` is multiplied by, as [`wkv7`] takes it; `write.keys` are whole keys always. `v` has the dtype of
        `value`, the others are float32 (float64 if an input is).

    Raises:
        TypeError: an argument is no floating point tensor, or the mask is not boolean.
        ValueError: shapes or devices do not fit, or `feature_map` or `backend` is unknown.
        RuntimeError: the backend asked for by name cannot run here.
    """
    tensors = (decay, rate, key, value, first_value, value_share, k_k, k_a)
    check_state_writes(*tensors, mask, num_heads, feature_map)
    widths = (number_of_features(feature_map, key.shape[2] // num_heads), value.shape[2] // num_heads)
    if not takes_triton(backend, tensors, widths):
        with exact(key.device):
            return elementwise.state_writes(*tensors, mask, num_heads, feature_map, channels_may_stay)
    touched = None if first_value is None and mask is None else value  # else `v` is the value, unread
    inputs = (decay, rate, key, touched, first_value, value_share, k_k, k_a, mask, num_heads, feature_map)
    w, k, v, kappa, a = triton_writes.state_writes(*inputs)
    v = value if touched is None else v
    return Write(*(x.unflatten(2, (num_heads, x.shape[2] // num_heads)) for x in (w, k, v, kappa, a)))


def state_readout(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor | None = None,
    eps: float = 64e-5,
    *,
    feature_map: str = "identity",
    overwrite_r: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Read a state that no longer changes, normalise per head, gate (equations 13, 14 and 16).

    `o_t = GroupNorm_H(S f(r_t)) * gate_t`, with one group per head and the feature map f.

    Args:
        r: receptance `[B, T, H, n]`, before the feature map; n = K but for `quadratic`, where K = 4 n.
        state: `[B, H, V, K]`.
        norm_weight, norm_bias: `[H * V]`, or None, both, for no normalisation.
        gate: `[B, T, H * V]`, or None for no gate.
        eps: added to the variance, > 0; RWKV-7 takes `head_dim * 1e-5`.
        feature_map: `identity`, `silu` or `quadratic`, applied to the receptance: see [`map_features`].
        overwrite_r: whether the result may take the place of `r` in memory, where that is faster; `r` is lost then.
        backend: `triton` (one kernel, on GPUs), `chunked` (plain PyTorch) or `auto`, Triton on GPUs where it can
            run. Triton's gradients have no gradients of their own.

    Returns:
        `[B, T, H * V]` in the dtype of `r`. The read and the norm are computed in float32 (float64 if an input is).

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit, `eps` is not positive, or `feature_map` or `backend` is unknown.
        RuntimeError: the backend asked for by name cannot run here.
    """
    check_state_readout(r, state, norm_weight, norm_bias, gate, eps, feature_map)
    tensors = (r, state, norm_weight, norm_bias, gate)
    if takes_triton(backend, tensors, tuple(state.shape[2:])):
        return triton_readout.state_readout(*tensors, float(eps), feature_map)
    with exact(r.device):
        return elementwise.state_readout(*tensors, eps, feature_map, overwrite_r)


def scan_readout(
    o: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r_k: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor,
    eps: float = 64e-5,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Normalise what a scan has read per head, add the bonus, gate (equations 14 to 16).

    `y_t = (GroupNorm_H(o_t) + sum(r_t * k_t * r_k) v_t) * gate_t`, with one group and one sum per head.

    Args:
        o: `[B, R, H, V]`, from [`wkv7`]; R <= T. Behind its end `o` and the bonus are zero, so `y = norm_bias * gate`.
        r, k: receptance and replacement key of the scan, `[B, R, H, K]`; `keys` of what [`state_writes`] returns.
        v: its value `[B, R, H, V]`.
        r_k: `[H, K]`.
        norm_weight, norm_bias: `[H * V]`, or None, both, for no normalisation.
        gate: `[B, T, H * V]`.
        eps: added to the variance, > 0; the models use `head_dim * 1e-5`.
        backend: `triton` (one kernel, on GPUs), `chunked` (plain PyTorch) or `auto`, Triton on GPUs where it can
            run. Triton's gradients have no gradients of their own.

    Returns:
        `[B, T, H * V]` in the dtype of `gate`, computed in float32 (float64 if an input is).

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit, `eps` is not positive, or `backend` is unknown.
        RuntimeError: the backend asked for by name cannot run here.
    """
    check_scan_readout(o, r, k, v, r_k, norm_weight, norm_bias, gate, eps)
    tensors = (o, r, k, v, r_k, norm_weight, norm_bias, gate)
    if takes_triton(backend, tensors, (r.shape[3], v.shape[3])):
        return triton_scan_readout.scan_readout(*tensors, float(eps))
    with exact(r.device):
        return elementwise.scan_readout(*tensors, eps)
