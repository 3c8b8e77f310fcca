"""`scan_readout` (equations 14 to 16) as one Triton kernel forward and one backward."""

import torch
import triton
import triton.language as tl

from .triton_blocks import (
    empty_gradient,
    given,
    load,
    normalize,
    normalize_backward,
    offsets,
    optional_contiguous,
    packed,
    row_strides,
    rows,
    sum_parts,
    token_block,
    tokens_per_block,
)
from .triton_launch import launch


# A token and a head, K = V = 64: 768 bytes in 16 bits, 896 with a float32 k.
@triton.jit
def scan_readout_forward_kernel(
    p_o, p_r, p_k, p_v, p_r_k, p_weight, p_bias, p_gate, p_y,
    s_o_b, s_o_t, s_r_b, s_r_t, s_k_b, s_k_t, s_v_b, s_v_t, s_gate_b, s_gate_t, T, R, H, eps,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_k, m_v = tl.arange(0, BK) < K, tl.arange(0, BV) < V
    o_k, o_v = i_h * K + tl.arange(0, BK), i_h * V + tl.arange(0, BV)
    m_rk = (o_t < R)[:, None] & m_k[None, :]
    m_rv = (o_t < R)[:, None] & m_v[None, :]
    m = m_t[:, None] & m_v[None, :]
    b_y = load(p_o, offsets(i_b, o_t, s_o_b, s_o_t, o_v), m_rv)
    if p_weight is not None:  # (14)
        b_y, _ = normalize(b_y, m_v, V, eps)
        b_y = b_y * load(p_weight, o_v, m_v)[None, :] + load(p_bias, o_v, m_v)[None, :]
    b_r = load(p_r, offsets(i_b, o_t, s_r_b, s_r_t, o_k), m_rk)
    b_k = load(p_k, offsets(i_b, o_t, s_k_b, s_k_t, o_k), m_rk)
    b_bonus = tl.sum(b_r * b_k * load(p_r_k, o_k, m_k)[None, :], 1)
    b_y += b_bonus[:, None] * load(p_v, offsets(i_b, o_t, s_v_b, s_v_t, o_v), m_rv)  # (15)
    b_y *= load(p_gate, offsets(i_b, o_t, s_gate_b, s_gate_t, o_v), m)  # (16)
    tl.store(p_y + packed(i_b * T + o_t, H * V, o_v), b_y, mask=m)


# A token and a head, K = V = 64: 1,408 bytes in 16 bits, 1,664 with a float32 k; 768 / BT for parameters.
@triton.jit
def scan_readout_backward_kernel(
    p_dy, p_o, p_r, p_k, p_v, p_r_k, p_weight, p_bias, p_gate,
    p_do, p_dr, p_dk, p_dv, p_dr_k, p_dweight, p_dbias, p_dgate,
    s_dy_b, s_dy_t, s_o_b, s_o_t, s_r_b, s_r_t, s_k_b, s_k_t, s_v_b, s_v_t, s_gate_b, s_gate_t, T, R, H, eps,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_k, m_v = tl.arange(0, BK) < K, tl.arange(0, BV) < V
    o_k, o_v = i_h * K + tl.arange(0, BK), i_h * V + tl.arange(0, BV)
    m_rk = (o_t < R)[:, None] & m_k[None, :]
    m_rv = (o_t < R)[:, None] & m_v[None, :]
    m = m_t[:, None] & m_v[None, :]
    i_part = tl.program_id(0).to(tl.int64) * H

    b_x = load(p_o, offsets(i_b, o_t, s_o_b, s_o_t, o_v), m_rv)
    b_y = b_x
    if p_weight is not None:
        b_x, b_rstd = normalize(b_x, m_v, V, eps)
        b_weight = load(p_weight, o_v, m_v)[None, :]
        b_y = b_x * b_weight + load(p_bias, o_v, m_v)[None, :]
    b_r = load(p_r, offsets(i_b, o_t, s_r_b, s_r_t, o_k), m_rk)
    b_k = load(p_k, offsets(i_b, o_t, s_k_b, s_k_t, o_k), m_rk)
    b_r_k = load(p_r_k, o_k, m_k)[None, :]
    b_bonus = tl.sum(b_r * b_k * b_r_k, 1)
    b_v = load(p_v, offsets(i_b, o_t, s_v_b, s_v_t, o_v), m_rv)
    b_y += b_bonus[:, None] * b_v

    b_dy = load(p_dy, offsets(i_b, o_t, s_dy_b, s_dy_t, o_v), m)
    tl.store(p_dgate + packed(i_b * T + o_t, H * V, o_v), b_dy * b_y, mask=m)
    b_dy *= load(p_gate, offsets(i_b, o_t, s_gate_b, s_gate_t, o_v), m)
    i_row = i_b * R + o_t
    tl.store(p_dv + packed(i_row, H * V, o_v), b_dy * b_bonus[:, None], mask=m_rv)
    b_dbonus = tl.sum(b_dy * b_v, 1)[:, None]
    tl.store(p_dr + packed(i_row, H * K, o_k), b_dbonus * b_k * b_r_k, mask=m_rk)
    tl.store(p_dk + packed(i_row, H * K, o_k), b_dbonus * b_r * b_r_k, mask=m_rk)
    tl.store(p_dr_k + i_part * K + o_k, tl.sum(b_dbonus * b_r * b_k, 0), mask=m_k)
    if p_weight is not None:
        tl.store(p_dweight + i_part * V + o_v, tl.sum(b_dy * b_x, 0), mask=m_v)
        tl.store(p_dbias + i_part * V + o_v, tl.sum(b_dy, 0), mask=m_v)
        b_dy = normalize_backward(b_dy * b_weight, b_x, b_rstd, V)
    tl.store(p_do + packed(i_row, H * V, o_v), b_dy, mask=m_rv)


def configuration(r: torch.Tensor, v: torch.Tensor) -> dict[str, int]:
    K, V = r.shape[3], v.shape[3]
    BK, BV = triton.next_power_of_2(K), triton.next_power_of_2(V)
    return {"K": K, "V": V, "BK": BK, "BV": BV, "BT": tokens_per_block(max(BK, BV))}


@torch.library.custom_op("crosswkv::scan_readout", mutates_args=())
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
    """`[B, R, H, V]`, `[B, R, H, K]` twice and `[B, R, H, V]` to `[B, T, H * V]`, the shape of the gate."""
    y = gate.new_empty(gate.shape)
    options = configuration(r, v)
    batch_size, rows_read, num_heads, _ = r.shape
    length = gate.shape[1]
    o, r, k, v, gate = (rows(x) for x in (o, r, k, v, gate))
    parameters = [optional_contiguous(x) for x in (r_k, norm_weight, norm_bias)]
    grid = (batch_size * triton.cdiv(length, options["BT"]), num_heads)
    sizes = (length, rows_read, num_heads, eps)
    strides = row_strides(o, r, k, v, gate)
    launch(
        scan_readout_forward_kernel, grid, o, r, k, v, *parameters, gate, y, *strides, *sizes, num_warps=4, **options
    )
    return y


@scan_readout.register_fake
def empty_readout(o, r, k, v, r_k, norm_weight, norm_bias, gate, eps):
    return gate.new_empty(gate.shape)


@torch.library.custom_op("crosswkv::scan_readout_backward", mutates_args=())
def scan_readout_backward(
    dy: torch.Tensor,
    o: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r_k: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor,
    eps: float,
) -> list[torch.Tensor]:
    """Gradients of o, r, k, v, r_k, norm_weight, norm_bias and gate; empty for what is None."""
    do, dr, dk, dv, *dparameters, dgate = empty_gradients(dy, o, r, k, v, r_k, norm_weight, norm_bias, gate, eps)
    options = configuration(r, v)
    batch_size, rows_read, num_heads, _ = r.shape
    length = gate.shape[1]
    num_blocks = batch_size * triton.cdiv(length, options["BT"])
    parts = [x.new_empty(num_blocks, x.numel(), dtype=torch.float32) for x in dparameters]
    dy, o, r, k, v, gate = (rows(x) for x in (dy, o, r, k, v, gate))
    parameters = [optional_contiguous(x) for x in (r_k, norm_weight, norm_bias)]
    tensors = (dy, o, r, k, v, *parameters, gate, do, dr, dk, dv, *parts, dgate)
    sizes = (length, rows_read, num_heads, eps)
    strides = row_strides(dy, o, r, k, v, gate)
    launch(scan_readout_backward_kernel, (num_blocks, num_heads), *tensors, *strides, *sizes, num_warps=8, **options)
    return [do, dr, dk, dv, *sum_parts(parts, dparameters), dgate]


@scan_readout_backward.register_fake
def empty_gradients(dy, *inputs):
    return [empty_gradient(x, dy) for x in inputs[:8]]


def keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def gradients(ctx, dy):
    inputs = ctx.saved_tensors  # once: a checkpoint recomputes them for each access
    found = scan_readout_backward(dy, *inputs, ctx.eps)
    return *given(found, inputs), None


scan_readout.register_autograd(gradients, setup_context=keep_inputs)
