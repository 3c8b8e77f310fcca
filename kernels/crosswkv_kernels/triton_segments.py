"""Few heads, long sequences: segments of a scan that run in parallel, as Triton kernels.

A segment maps the state it starts from to `S X + Y`; `wkv7_segments_kernel` computes `X` (`K x K`) and `Y`,
`wkv7_combine_kernel` passes states from segment to segment, and the scan proper then starts everywhere at once. The
gradient goes the same way back. `triton_chunks.py` has the equations, `triton_wkv7.py` what it adds to the traffic.
"""

import triton
import triton.language as tl

from .triton_chunks import (
    below,
    exact,
    load_block,
    load_keys,
    load_state,
    load_writes,
    next_state,
    removed_values,
    rounded,
    store_state,
    tokens_of_chunk,
)


@triton.jit(do_not_specialize=["length", "heads", "chunks_per_segment", "segments"])
def wkv7_segments_kernel(
    p_w, p_k, p_v, p_kappa, p_a, p_X, p_Y,
    w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h,
    length, heads, chunks_per_segment, segments,
    K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, segment): X `[K, K]` and Y `[V, K]`, with which the segment maps a state S to S X + Y.

    X is a state that starts as the identity and whose tokens have no value; rows of a state do not depend on each
    other, so that it is scanned beside Y.
    """
    i_bh, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    EXACT: tl.constexpr = exact(PRECISION, BK)
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    p_w += i_b * w_b + i_h * w_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    b_T = tl.where(o_k[:, None] == o_k[None, :], 1.0, 0.0)  # the segment's X
    b_S = tl.zeros((BV, BK), tl.float32)
    for i_c in range(i_p * chunks_per_segment, min((i_p + 1) * chunks_per_segment, tl.cdiv(length, BT))):
        o_t = tokens_of_chunk(i_c, BT, WIDE)
        b_w, b_c, b_A, b_B, b_X = load_writes(
            p_w, p_kappa, p_a, w_t, kappa_t, a_t, o_t, o_k, length, K, KW, KA, PRECISION
        )
        b_D = load_keys(p_k, o_t, k_t, o_k, length, p_kappa, kappa_t, K, KK) * tl.exp(-b_c)
        b_V = load_block(p_v, o_t, v_t, o_v, length, V)
        b_M = below(tl.dot(b_A, tl.trans(b_D), input_precision=PRECISION), False)
        b_U = removed_values(b_A, b_S, b_M, b_V, b_X, EXACT)
        b_S = next_state(b_S, b_V, b_D, b_U, b_B, b_w, PRECISION, EXACT)
        b_T = rounded(b_T, PRECISION)
        b_U = tl.dot(b_A, tl.trans(b_T), input_precision=PRECISION)
        b_U = tl.dot(b_X, b_U, input_precision=EXACT)
        b_T -= tl.dot(tl.trans(b_U), b_B, input_precision=EXACT)
        b_T *= tl.exp(tl.sum(b_w, axis=0))[None, :]
    store_state(p_X + (i_bh * segments + i_p) * K * K, o_k, o_k, K, K, b_T)
    store_state(p_Y + (i_bh * segments + i_p) * V * K, o_v, o_k, V, K, b_S)


@triton.jit(do_not_specialize=["length", "heads", "chunks_per_segment", "segments"])
def wkv7_segments_backward_kernel(
    p_r, p_w, p_kappa, p_a, p_do, p_Y,
    r_b, r_t, r_h, w_b, w_t, w_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h, do_b, do_t, do_h,
    length, heads, chunks_per_segment, segments,
    K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, segment): Y `[V, K]`, the gradient at the segment's start if that at its end is zero.

    With dS at its end it is dS X^T + Y: states, keys and values do not enter.
    """
    i_bh, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    EXACT: tl.constexpr = exact(PRECISION, BK)
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    p_r += i_b * r_b + i_h * r_h
    p_w += i_b * w_b + i_h * w_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    p_do += i_b * do_b + i_h * do_h
    b_dS = tl.zeros((BV, BK), tl.float32)
    first, last = i_p * chunks_per_segment, min((i_p + 1) * chunks_per_segment, tl.cdiv(length, BT))
    for i in range(0, last - first):
        o_t = tokens_of_chunk(last - 1 - i, BT, WIDE)
        b_w, b_c, b_A, b_B, b_X = load_writes(
            p_w, p_kappa, p_a, w_t, kappa_t, a_t, o_t, o_k, length, K, KW, KA, PRECISION
        )
        b_R = load_block(p_r, o_t, r_t, o_k, length, K) * tl.exp(b_c)
        b_dO = load_block(p_do, o_t, do_t, o_v, length, V)
        b_Q = below(tl.dot(b_R, tl.trans(b_B), input_precision=PRECISION), True)
        b_G = b_dS * tl.exp(tl.sum(b_w, axis=0))[None, :]
        b_dU = tl.dot(b_B, tl.trans(b_G), input_precision=EXACT)
        b_dU = tl.dot(tl.trans(b_Q), b_dO, b_dU, input_precision=PRECISION)
        b_dY = tl.dot(tl.trans(b_X), b_dU, input_precision=EXACT)
        b_dS = tl.dot(tl.trans(b_dO), b_R, b_G, input_precision=PRECISION)
        b_dS -= tl.dot(tl.trans(b_dY), b_A, input_precision=EXACT)
    store_state(p_Y + (i_bh * segments + i_p) * V * K, o_v, o_k, V, K, b_dS)


@triton.jit(do_not_specialize=["segments"])
def wkv7_combine_kernel(
    p_S, p_X, p_Y, p_passed, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, block of values): pass a state through the segments, and note what each of them starts from.

    Backwards it is the state's gradient, from the last segment to the first, by the transposed X.
    """
    EXACT: tl.constexpr = exact(PRECISION, BK)
    blocks = tl.cdiv(V, BV)
    i_bh, i_v = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    if p_S is not None:
        b_S = load_state(p_S + i_bh * V * K, o_v, o_k, V, K).to(tl.float32)
    else:
        b_S = tl.zeros((BV, BK), tl.float32)
    for i in range(0, segments):
        i_p = i_bh * segments + (segments - 1 - i if REVERSE else i)
        store_state(p_passed + i_p * V * K, o_v, o_k, V, K, b_S)
        b_X = load_state(p_X + i_p * K * K, o_k, o_k, K, K)
        if REVERSE:
            b_X = tl.trans(b_X)
        b_S = tl.dot(b_S, b_X, input_precision=EXACT)
        if p_Y is not None:
            b_S += load_state(p_Y + i_p * V * K, o_v, o_k, V, K)
