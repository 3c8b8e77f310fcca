"""`state_readout` (equations 13, 14 and 16, the state constant) as one Triton kernel forward and one backward."""

from typing import Any

import torch
import triton
import triton.language as tl

from .feature_maps import PRODUCTS, QUADRATIC
from .triton_blocks import (
    empty_gradient,
    given,
    load,
    normalize,
    normalize_backward,
    offsets,
    optional_contiguous,
    optional_rows,
    packed,
    row_strides,
    rows,
    sum_parts,
)
from .triton_features import (
    EPS,
    bare_products,
    column_factors,
    feature_columns,
    feature_constants,
    features,
    features_of_partner,
    gradient_of_products,
    load_channels,
    slopes,
    store_channels,
)
from .triton_launch import dot_precision, launch

WIDE_BLOCK_K = 32
PROGRAMS = 528  # of a backward pass: four for each of 132 multiprocessors; more of them only add partial sums


# A token and a head, K = V = 64, 16 bits: 384 bytes with a gate, 256 without; with `quadratic`, K = 64 and V = 16, 64
# without a gate. The state, 16 or 4 kB, is shared by all tokens: programs of one head are neighbours and find it in
# cache. It stands on the left of products, transposed where need be, because warps share out the rows of the left side
# and each of them then holds a part of the state, not all of it.
@triton.jit
def readout_forward(
    p_r, p_S, p_weight, p_bias, p_gate, p_o, s_r_b, s_r_t, s_S_b, s_S_h, s_gate_b, s_gate_t, T, H, eps,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BT: tl.constexpr, NB: tl.constexpr, MAP: tl.constexpr, PLACE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (NB blocks of tokens, head); with `PLACE` tokens stand on the left: see `bare_products`."""
    i_h = tl.program_id(1)
    groups = tl.cdiv(T, BT * NB)
    i_b, i_group = (tl.program_id(0) // groups).to(tl.int64), (tl.program_id(0) % groups).to(tl.int64)
    o_v = tl.arange(0, BV)
    m_v = o_v < V
    o_vt = i_h * V + o_v
    o_k, m_k, o_n, o_partner = feature_columns(i_h, N, BN, tl.arange(0, BK))
    p_S += i_b * s_S_b + i_h.to(tl.int64) * s_S_h
    b_S = load(p_S, o_v[:, None] * K + o_k[None, :], m_v[:, None] & m_k[None, :])
    if PLACE:
        b_S *= column_factors(o_k, N)[None, :]
    if p_weight is not None:
        b_weight = load(p_weight, o_vt, m_v)[None, :]
        b_bias = load(p_bias, o_vt, m_v)[None, :]
    for i in tl.range(0, NB, num_stages=1):
        o_t = (i_group * NB + i) * BT + tl.arange(0, BT)
        m_t = o_t < T
        m = m_t[:, None] & m_v[None, :]
        if PLACE:
            o_i = tl.arange(0, BN)
            b_x = load(p_r, offsets(i_b, o_t, s_r_b, s_r_t, i_h * N + o_i), m_t[:, None] & (o_i < N)[None, :])
            b_o = tl.dot(bare_products(b_x, N, BN, BK), tl.trans(b_S), input_precision=PRECISION)
            b_o *= (1 / (tl.sum(b_x * b_x, 1) / N + EPS))[:, None]
        else:
            m_r = m_t[:, None] & m_k[None, :]
            b_x, b_partner = load_channels(p_r, i_b, o_t, s_r_b, s_r_t, o_n, o_partner, m_r, MAP)
            b_r = features(b_x, b_partner, o_k, N, BN, MAP)
            b_o = tl.trans(tl.dot(b_S, tl.trans(b_r), input_precision=PRECISION))
        if p_weight is not None:
            b_o, _ = normalize(b_o, m_v, V, eps)
            b_o = b_o * b_weight + b_bias
        if p_gate is not None:
            b_o *= load(p_gate, offsets(i_b, o_t, s_gate_b, s_gate_t, o_vt), m)
        tl.store(p_o + packed(i_b * T + o_t, H * V, o_vt), b_o, mask=m)


# A token and a head, K = V = 64, 16 bits: 640 bytes with a gate, 384 without, and two states a group of NB blocks;
# with `quadratic`, K = 64 and V = 16, 96 without a gate. A wide state is more than registers, Blackwell's tensor
# memory or the shared memory of sm_86 hold: a program then writes the gradients of BK of its columns, and all those of
# a head compute what was read.
@triton.jit
def readout_backward(
    p_do, p_r, p_S, p_weight, p_bias, p_gate, p_dr, p_dS, p_dweight, p_dbias, p_dgate,
    s_do_b, s_do_t, s_r_b, s_r_t, s_S_b, s_S_h, s_gate_b, s_gate_t, s_dr, T, H, NG, eps,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BT: tl.constexpr, NB: tl.constexpr, NK: tl.constexpr, MAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_part = tl.program_id(0).to(tl.int64)
    i_b, i_group = i_part // NG, i_part % NG
    i_k = tl.program_id(2)
    o_v = tl.arange(0, BV)
    m_v = o_v < V
    o_vt = i_h * V + o_v
    o_k, m_k, o_n, o_partner = feature_columns(i_h, N, BN, i_k * BK + tl.arange(0, BK))
    p_S += i_b * s_S_b + i_h.to(tl.int64) * s_S_h
    m_S = m_v[:, None] & m_k[None, :]
    b_S = load(p_S, o_v[:, None] * K + o_k[None, :], m_S)
    if MAP == "quadratic":  # a channel is the first of four products and the second of four others
        o_back, o_back_n = features_of_partner(o_k, i_h, N)
        b_back = load(p_S, o_v[:, None] * K + o_back[None, :], m_S)
    b_dS = tl.zeros((BV, BK), tl.float32)
    b_dweight = tl.zeros((BV,), tl.float32)
    b_dbias = tl.zeros((BV,), tl.float32)
    if p_weight is not None:
        b_weight = load(p_weight, o_vt, m_v)[None, :]
        b_bias = load(p_bias, o_vt, m_v)[None, :]
    for i in tl.range(0, NB, num_stages=1):  # blocks loaded ahead would not fit into shared memory
        o_t = (i_group * NB + i) * BT + tl.arange(0, BT)
        m_t = o_t < T
        m_rt = m_t[:, None] & m_k[None, :]
        m = m_t[:, None] & m_v[None, :]
        b_x, b_partner = load_channels(p_r, i_b, o_t, s_r_b, s_r_t, o_n, o_partner, m_rt, MAP)
        b_r = features(b_x, b_partner, o_k, N, BN, MAP)
        b_do = load(p_do, offsets(i_b, o_t, s_do_b, s_do_t, o_vt), m)
        i_row = i_b * T + o_t
        o_out = packed(i_row, H * V, o_vt)
        if p_weight is not None or p_gate is not None:
            b_o = tl.trans(tl.dot(b_S, tl.trans(b_r), input_precision=PRECISION))
            for j in tl.static_range(1, NK):
                o_other = (i_k + j) % NK * BK + tl.arange(0, BK)
                o_j, m_j, o_nj, o_partner_j = feature_columns(i_h, N, BN, o_other)
                m_rj = m_t[:, None] & m_j[None, :]
                b_xj, b_partner_j = load_channels(p_r, i_b, o_t, s_r_b, s_r_t, o_nj, o_partner_j, m_rj, MAP)
                b_rj = features(b_xj, b_partner_j, o_j, N, BN, MAP)
                b_Sj = load(p_S, o_v[:, None] * K + o_j[None, :], m_v[:, None] & m_j[None, :])
                b_o += tl.trans(tl.dot(b_Sj, tl.trans(b_rj), input_precision=PRECISION))
        if p_weight is not None:
            b_o, b_rstd = normalize(b_o, m_v, V, eps)
        if p_gate is not None:
            b_gate = load(p_gate, offsets(i_b, o_t, s_gate_b, s_gate_t, o_vt), m)
            if p_weight is not None:
                tl.store(p_dgate + o_out, b_do * (b_o * b_weight + b_bias), mask=m & (i_k == 0))
            else:
                tl.store(p_dgate + o_out, b_do * b_o, mask=m & (i_k == 0))
            b_do *= b_gate
        if p_weight is not None:
            b_dweight += tl.sum(b_do * b_o, 0)
            b_dbias += tl.sum(b_do, 0)
            b_do = normalize_backward(b_do * b_weight, b_o, b_rstd, V)
        b_dr = tl.trans(tl.dot(tl.trans(b_S), tl.trans(b_do), input_precision=PRECISION))
        if MAP == "quadratic":
            b_y = load(p_r, offsets(i_b, o_t, s_r_b, s_r_t, o_back_n), m_rt)
            b_dback = tl.trans(tl.dot(tl.trans(b_back), tl.trans(b_do), input_precision=PRECISION))
            b_dx = gradient_of_products(b_dr, b_dback, b_x, b_partner, b_y, o_k, N, BN)
            store_channels(p_dr + i_k.to(tl.int64) * s_dr, b_dx, i_row, H * N, i_h * N, m_t, N, BN, BT)
        else:
            tl.store(p_dr + packed(i_row, H * N, o_n), b_dr * slopes(b_x, MAP), mask=m_rt)
        b_dS += tl.dot(tl.trans(b_do), b_r, input_precision=PRECISION)
    p_dS += (i_part * H + i_h) * V * K
    tl.store(p_dS + o_v[:, None] * K + o_k[None, :], b_dS, mask=m_S)
    if p_weight is not None:
        tl.store(p_dweight + i_part * H * V + o_vt, b_dweight, mask=m_v & (i_k == 0))
        tl.store(p_dbias + i_part * H * V + o_vt, b_dbias, mask=m_v & (i_k == 0))


def configuration(r: torch.Tensor, state: torch.Tensor, feature_map: str) -> dict[str, Any]:
    V = state.shape[2]
    constants = feature_constants(r.shape[3], feature_map)
    BK, BV = constants["BK"], max(triton.next_power_of_2(V), 16)
    precision = dot_precision(r, state)
    narrow = (64 * 32 if feature_map == QUADRATIC else 64 * 64) >= BK * BV
    BT = 32 if precision == "tf32" and narrow else 16  # else registers spill, or shared memory is short
    warps = 8 if BK * BV >= 64 * 64 else 4
    return constants | {"V": V, "BV": BV, "BT": BT, "PRECISION": precision, "num_warps": warps}


@torch.library.custom_op("crosswkv::state_readout", mutates_args=())
def state_readout(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    eps: float,
    feature_map: str,
) -> torch.Tensor:
    """`[B, T, H, n]` and `[B, H, V, K]` to `[B, T, H * V]`."""
    o = empty_readout(r, state)
    batch_size, length, num_heads, _ = r.shape
    options = configuration(r, state, feature_map)
    options["BT"] *= min(max(2048 // (options["BK"] * options["BV"]), 1), 4)  # narrow heads: more tokens a program
    narrow = options["BK"] * options["BV"] <= 64 * 16 and options["BN"] >= 16
    place = feature_map == QUADRATIC and options["PRECISION"] == "tf32" and r.element_size() == 2 and narrow
    blocks = batch_size * num_heads * triton.cdiv(length, options["BT"])
    options |= {"PLACE": place, "NB": 4 if place and blocks >= 4 * PROGRAMS else 1}
    r, state, gate = rows(r), rows(state), optional_rows(gate)
    tensors = (r, state, optional_contiguous(norm_weight), optional_contiguous(norm_bias), gate, o)
    grid = (batch_size * triton.cdiv(length, options["BT"] * options["NB"]), num_heads)
    launch(readout_forward, grid, *tensors, *row_strides(r, state, gate), length, num_heads, eps, **options)
    return o


@state_readout.register_fake
def empty_readout(r, state, norm_weight=None, norm_bias=None, gate=None, eps=None, feature_map=None):
    return r.new_empty(*r.shape[:2], r.shape[2] * state.shape[2])


@torch.library.custom_op("crosswkv::state_readout_backward", mutates_args=())
def state_readout_backward(
    do: torch.Tensor,
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    eps: float,
    feature_map: str,
) -> list[torch.Tensor]:
    """Gradients of r, state, norm_weight, norm_bias and gate; empty for what is None."""
    dr, dstate, *dnorm, dgate = empty_gradients(do, r, state, norm_weight, norm_bias, gate, eps, feature_map)
    batch_size, length, num_heads, _ = r.shape
    options = configuration(r, state, feature_map)
    num_blocks = max(triton.cdiv(length, options["BT"]), 1)
    groups = max(PROGRAMS // max(batch_size * num_heads, 1), 1)
    blocks_per_group = triton.next_power_of_2(triton.cdiv(num_blocks, groups))  # so that few variants are compiled
    groups = triton.cdiv(num_blocks, blocks_per_group)
    parts = [x.new_empty(batch_size * groups, *x.shape[-1:], dtype=torch.float32) for x in dnorm]
    dstates = state.new_empty(batch_size, groups, *state.shape[1:], dtype=torch.float32)
    do, r, state, gate = rows(do), rows(r), rows(state), optional_rows(gate)
    tensors = (do, r, state, optional_contiguous(norm_weight), optional_contiguous(norm_bias), gate)
    products = feature_map == QUADRATIC
    columns = PRODUCTS * options["BN"] if products else options["K"]
    if options["BK"] * options["BV"] > 64 * 64:
        options["BK"] = max(WIDE_BLOCK_K, options["BN"] if products else 0)
    NK = triton.cdiv(columns, options["BK"])
    options |= {"NB": blocks_per_group, "NK": NK}
    # of products each of NK programs has a part of all channels' gradients, of other features all of a part
    drs = dr.new_empty(NK, *dr.shape, dtype=torch.float32) if products and NK > 1 else dr[None]
    sizes = (drs.stride(0), length, num_heads, groups, eps)
    strides = row_strides(do, r, state, gate)
    grid = (batch_size * groups, num_heads, NK)
    launch(readout_backward, grid, *tensors, drs, dstates, *parts, dgate, *strides, *sizes, **options)
    if len(drs) > 1:
        dr = drs.sum(0).to(dr.dtype)
    return [dr, dstates.sum(1).to(dstate.dtype), *(sum_parts(parts, dnorm)), dgate]


@state_readout_backward.register_fake
def empty_gradients(do, r, state, norm_weight, norm_bias, gate, eps, feature_map):
    return [empty_gradient(x, r) for x in (r, state, norm_weight, norm_bias, gate)]


def keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.eps, ctx.feature_map = inputs
    ctx.save_for_backward(*tensors)


def gradients(ctx, do):
    inputs = ctx.saved_tensors  # once: a checkpoint recomputes them for each access
    found = state_readout_backward(do, *inputs, ctx.eps, ctx.feature_map)
    return *given(found, inputs), None, None


state_readout.register_autograd(gradients, setup_context=keep_inputs)
