"""`token_shift_mix` (equations 4 and 5) as one Triton kernel forward and one backward."""

import torch
import triton
import triton.language as tl

from .triton_blocks import empty_gradient, given, load, offsets, optional_rows, packed, row_strides, rows, token_block
from .triton_launch import launch

BLOCK_T, BLOCK_D = 32, 64


# A token and 64 channels in 16 bits: 128 (1 + n) bytes, 640 for n = 4; 128 more with `previous`.
@triton.jit
def mix_forward(
    p_x, p_mu, p_previous, p_y, s_x_b, s_x_t, s_previous_b, s_previous_t, s_y_n, T, D,
    N: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    m_d = o_d < D
    m = m_t[:, None] & m_d[None, :]
    o_x = offsets(i_b, o_t, s_x_b, s_x_t, o_d)
    b_x = load(p_x, o_x, m)
    if p_previous is None:  # from cache: the row above, which this program or its neighbour loads too
        b_previous = load(p_x, o_x - s_x_t, m & (o_t > 0)[:, None])
    else:
        b_previous = load(p_previous, offsets(i_b, o_t, s_previous_b, s_previous_t, o_d), m)
    o_y = packed(i_b * T + o_t, D, o_d)
    for n in tl.static_range(N):
        b_mu = load(p_mu, n * D + o_d, m_d)
        tl.store(p_y + o_y, b_x + (b_previous - b_x) * b_mu[None, :], mask=m)
        p_y += s_y_n


# A token and 64 channels in 16 bits: 128 (2 + n) bytes, 768 for n = 4; 256 more with `previous`; 16 n for sums of dmu.
@triton.jit
def mix_backward(
    p_dy, p_x, p_mu, p_previous, p_dx, p_dmu, p_dprevious,
    s_dy_n, s_dy_b, s_dy_t, s_x_b, s_x_t, s_previous_b, s_previous_t, T, D,
    N: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    m_d = o_d < D
    m = m_t[:, None] & m_d[None, :]
    o_x = offsets(i_b, o_t, s_x_b, s_x_t, o_d)
    b_x = load(p_x, o_x, m)
    if p_previous is None:
        b_previous = load(p_x, o_x - s_x_t, m & (o_t > 0)[:, None])
    else:
        b_previous = load(p_previous, offsets(i_b, o_t, s_previous_b, s_previous_t, o_d), m)
    b_delta = b_previous - b_x
    b_dx = tl.zeros((BT, BD), tl.float32)
    b_dprevious = tl.zeros((BT, BD), tl.float32)
    o_dy = offsets(i_b, o_t, s_dy_b, s_dy_t, o_d)
    p_dmu += tl.program_id(0).to(tl.int64) * N * D
    for n in tl.static_range(N):
        b_mu = load(p_mu, n * D + o_d, m_d)
        b_dy = load(p_dy, o_dy, m)
        b_dx += b_dy * (1 - b_mu)[None, :]
        if p_previous is None:  # x is what stands before the token behind it
            b_dx += load(p_dy, o_dy + s_dy_t, m & (o_t + 1 < T)[:, None]) * b_mu[None, :]
        else:
            b_dprevious += b_dy * b_mu[None, :]
        tl.store(p_dmu + n * D + o_d, tl.sum(b_dy * b_delta, 0), mask=m_d)
        p_dy += s_dy_n
    o_dx = packed(i_b * T + o_t, D, o_d)
    tl.store(p_dx + o_dx, b_dx, mask=m)
    if p_previous is not None:
        tl.store(p_dprevious + o_dx, b_dprevious, mask=m)


def grid(x: torch.Tensor) -> tuple[int, int]:
    batch_size, length, width = x.shape
    return batch_size * triton.cdiv(length, BLOCK_T), triton.cdiv(width, BLOCK_D)


@torch.library.custom_op("crosswkv::token_shift_mix", mutates_args=())
def token_shift_mix(x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
    """`[B, T, D]`, `[n, D]` and `[B, T, D]` or None to `[n, B, T, D]`."""
    y = empty_mixes(x, mu, previous)
    x, mu, previous = rows(x), mu.contiguous(), optional_rows(previous)
    strides = (*row_strides(x, previous), y.stride(0))
    sizes = {"N": len(mu), "BT": BLOCK_T, "BD": BLOCK_D}
    launch(mix_forward, grid(x), x, mu, previous, y, *strides, *x.shape[1:], num_warps=8, **sizes)
    return y


@token_shift_mix.register_fake
def empty_mixes(x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(mu.shape[0], *x.shape)


@torch.library.custom_op("crosswkv::token_shift_mix_backward", mutates_args=())
def token_shift_mix_backward(
    dy: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, mu and previous, the last one empty if previous is None."""
    dx, dmu, dprevious = empty_gradients(dy, x, mu, previous)
    if dy.stride(-1) != 1:
        dy = dy.contiguous()
    x, mu, previous = rows(x), mu.contiguous(), optional_rows(previous)
    parts = mu.new_empty(grid(x)[0], *mu.shape, dtype=torch.float32)
    strides = (*dy.stride()[:3], *row_strides(x, previous))
    sizes = {"N": len(mu), "BT": BLOCK_T, "BD": BLOCK_D}
    tensors = (dy, x, mu, previous, dx, parts, dprevious)
    launch(mix_backward, grid(x), *tensors, *strides, *x.shape[1:], num_warps=8, **sizes)
    return dx, parts.sum(0).to(dmu.dtype), dprevious


@token_shift_mix_backward.register_fake
def empty_gradients(
    dy: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, previous: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return empty_gradient(x, x), empty_gradient(mu, mu), empty_gradient(previous, x)


def keep_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def gradients(ctx, dy: torch.Tensor):
    inputs = ctx.saved_tensors  # once: a checkpoint recomputes them for each access
    return (*given(token_shift_mix_backward(dy, *inputs), inputs),)


token_shift_mix.register_autograd(gradients, setup_context=keep_inputs)
