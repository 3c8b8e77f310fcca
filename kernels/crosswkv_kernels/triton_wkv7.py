"""The recurrence in chunks, forward and backward, as Triton kernels; `triton_chunks.py` has the equations.

In the forward a program owns a head and a block of its values: rows of `S` do not depend on each other. Programs may
start from states in the middle of a sequence, see `triton_segments.py`.

Bytes per token and head, K = V = 64, all arguments in bf16, values not split (the least that must move: forward 7 rows
of 128 B, r w k v kappa a o; forward and backward 20 rows):

    forward                896
    forward, kept states 1,024 more, for 64 x 64 floats every 16 tokens, where a gradient will be asked for
    backward             2,688 = 896 (r w k v kappa a do) + 1,024 (states) + 768 (dr dw dk dv dkappa da)
    both                 4,608, 1.8 times the least
    in segments            640 more forward (w k v kappa a), 640 more backward (r w kappa a do), and 6 x 64 x 64 floats
                           each way per segment of at least 256 tokens: up to 6,656, 2.6 times the least

The state before the first token, where one is given, and that behind the last, where it is asked for, are 16 kB per
head each. What `state_writes` returns is float32 but for the value: 128 B more for each of w, k, kappa, a and their
gradients. Where w, a and, as a multiple of kappa, k are one number per head, as `state` fusion writes them, each of
them takes 4 bytes in the place of 256.
"""

import triton
import triton.language as tl

from .triton_chunks import (
    below,
    exact,
    load_block,
    load_keys,
    load_rates,
    load_state,
    load_writes,
    next_state,
    removed_values,
    rounded,
    store_block,
    store_rates,
    store_state,
    tokens_of_chunk,
)


@triton.jit(do_not_specialize=["length", "heads", "chunks_per_segment", "segments"])
def wkv7_forward_kernel(
    p_r, p_w, p_k, p_v, p_kappa, p_a, p_o, p_start, p_final, p_saved,
    r_b, r_t, r_h, w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h,
    length, heads, chunks_per_segment, segments,
    K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, block of values, segment): its chunks one after another, the state in registers."""
    blocks = tl.cdiv(V, BV)
    i_bh, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_bh = i_bh.to(tl.int64)
    i_b, i_h, i_p = i_bh // heads, i_bh % heads, tl.program_id(1)
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    chunks = tl.cdiv(length, BT)
    p_w += i_b * w_b + i_h * w_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    if p_r is not None:
        p_r += i_b * r_b + i_h * r_h
        p_o += (i_b * length * heads + i_h) * V
    if p_start is not None:
        b_S = load_state(p_start + (i_bh * segments + i_p) * V * K, o_v, o_k, V, K).to(tl.float32)
    else:
        b_S = tl.zeros((BV, BK), tl.float32)
    first, last = i_p * chunks_per_segment, min((i_p + 1) * chunks_per_segment, chunks)
    for i_c in tl.range(first, last, disable_licm=BV < 64):  # each is what spills the fewest registers on sm_90
        if p_saved is not None:
            store_state(p_saved + (i_bh * chunks + i_c) * V * K, o_v, o_k, V, K, b_S)
        o_t = tokens_of_chunk(i_c, BT, WIDE)
        b_w, b_c, b_A, b_B, b_X = load_writes(
            p_w, p_kappa, p_a, w_t, kappa_t, a_t, o_t, o_k, length, K, KW, KA, PRECISION
        )
        b_D = load_keys(p_k, o_t, k_t, o_k, length, p_kappa, kappa_t, K, KK) * tl.exp(-b_c)
        b_V = load_block(p_v, o_t, v_t, o_v, length, V)
        b_M = below(tl.dot(b_A, tl.trans(b_D), input_precision=PRECISION), False)
        b_U = removed_values(b_A, b_S, b_M, b_V, b_X, exact(PRECISION))
        if p_r is not None:
            b_R = load_block(p_r, o_t, r_t, o_k, length, K) * tl.exp(b_c)
            b_P = below(tl.dot(b_R, tl.trans(b_D), input_precision=PRECISION), True)
            b_Q = below(tl.dot(b_R, tl.trans(b_B), input_precision=PRECISION), True)
            b_O = tl.dot(b_R, tl.trans(b_S), input_precision=PRECISION)
            b_O = tl.dot(b_P, b_V, b_O, input_precision=PRECISION)
            b_O -= tl.dot(b_Q, b_U, input_precision=PRECISION)
            store_block(p_o, o_t, heads * V, o_v, length, V, b_O)
        b_S = next_state(b_S, b_V, b_D, b_U, b_B, b_w, PRECISION, exact(PRECISION))
    if p_final is not None:
        p_final += i_bh * V * K
        if i_p == segments - 1:
            store_state(p_final, o_v, o_k, V, K, b_S)


@triton.jit(do_not_specialize=["length", "heads", "chunks_per_segment", "segments"])
def wkv7_backward_kernel(
    p_r, p_w, p_k, p_v, p_kappa, p_a, p_do, p_saved, p_dS, p_dr, p_dw, p_dk, p_dv, p_dkappa, p_da,
    r_b, r_t, r_h, w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h,
    do_b, do_t, do_h, length, heads, chunks_per_segment, segments,
    K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, segment): its chunks from last to first, and in each of them the values in blocks.

    `p_dS` holds the state's gradient, that at the segment's end when the program starts, that at its start when it is
    done. In between it is updated in place, chunk by chunk: `V K` floats per program, which stay in the cache.
    """
    i_bh, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_k, o_i = tl.arange(0, BK), tl.arange(0, BV)
    chunks = tl.cdiv(length, BT)
    p_w += i_b * w_b + i_h * w_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    p_dS += (i_bh * segments + i_p) * V * K
    p_dv += (i_b * length * heads + i_h) * V
    i_out = i_b * length * heads + i_h
    if p_r is not None:
        p_r += i_b * r_b + i_h * r_h
        p_do += i_b * do_b + i_h * do_h
    first, last = i_p * chunks_per_segment, min((i_p + 1) * chunks_per_segment, chunks)
    for i in range(0, last - first):
        i_c = last - 1 - i
        o_t = tokens_of_chunk(i_c, BT, WIDE)
        b_w, b_c, b_A, b_B, b_X = load_writes(
            p_w, p_kappa, p_a, w_t, kappa_t, a_t, o_t, o_k, length, K, KW, KA, PRECISION
        )
        b_D = load_keys(p_k, o_t, k_t, o_k, length, p_kappa, kappa_t, K, KK) * tl.exp(-b_c)
        b_M = below(tl.dot(b_A, tl.trans(b_D), input_precision=PRECISION), False)
        if PRECISION == "tf32":  # the removal's gradient needs both parts
            b_rest = b_X - rounded(b_X, PRECISION)
            b_X -= b_rest
        b_decay = tl.exp(tl.sum(b_w, axis=0))[None, :]
        b_dA = tl.zeros((BT, BK), tl.float32)
        b_dB = tl.zeros((BT, BK), tl.float32)
        b_dD = tl.zeros((BT, BK), tl.float32)
        b_dL = tl.zeros((BT, BT), tl.float32)
        b_dM = tl.zeros((BT, BT), tl.float32)
        b_dw = tl.zeros((BK,), tl.float32)
        if p_r is not None:
            b_R = load_block(p_r, o_t, r_t, o_k, length, K) * tl.exp(b_c)
            b_P = below(tl.dot(b_R, tl.trans(b_D), input_precision=PRECISION), True)
            b_Q = below(tl.dot(b_R, tl.trans(b_B), input_precision=PRECISION), True)
            b_dR = tl.zeros((BT, BK), tl.float32)
            b_dP = tl.zeros((BT, BT), tl.float32)
            b_dQ = tl.zeros((BT, BT), tl.float32)
        # `disable_licm`: with receptances registers are too short for operands that wait for the next block of values
        for i_v in tl.range(0, tl.cdiv(V, BV), disable_licm=p_r is not None):
            o_v = i_v * BV + o_i
            b_S = load_state(p_saved + (i_bh * chunks + i_c) * V * K, o_v, o_k, V, K)
            b_V = load_block(p_v, o_t, v_t, o_v, length, V)
            b_U = removed_values(b_A, b_S, b_M, b_V, b_X, PRECISION)
            b_G = rounded(load_state(p_dS, o_v, o_k, V, K) * b_decay, PRECISION)  # of S + V^T D - U^T B
            b_dw += tl.sum(b_G * b_S, axis=0)
            b_dD = tl.dot(b_V, b_G, b_dD, input_precision=PRECISION)
            b_dB -= tl.dot(b_U, b_G, input_precision=PRECISION)
            b_dU = -tl.dot(b_B, tl.trans(b_G), input_precision=PRECISION)
            b_dV = tl.dot(b_D, tl.trans(b_G), input_precision=PRECISION)
            if p_r is not None:
                b_dO = load_block(p_do, o_t, do_t, o_v, length, V)
                b_dU -= tl.dot(tl.trans(b_Q), b_dO, input_precision=PRECISION)
                b_dV = tl.dot(tl.trans(b_P), b_dO, b_dV, input_precision=PRECISION)
                b_dP = tl.dot(b_dO, tl.trans(b_V), b_dP, input_precision=PRECISION)
                b_dQ -= tl.dot(b_dO, tl.trans(b_U), input_precision=PRECISION)
                b_dR = tl.dot(b_dO, b_S, b_dR, input_precision=PRECISION)
                b_G = tl.dot(tl.trans(b_dO), b_R, b_G, input_precision=PRECISION)
            b_dU = rounded(b_dU, PRECISION)
            b_dY = tl.dot(tl.trans(b_X), b_dU, input_precision=PRECISION)  # of A S^T + M V
            if PRECISION == "tf32":
                b_dY = tl.dot(tl.trans(b_rest), b_dU, b_dY, input_precision=PRECISION)
            b_dY = rounded(b_dY, PRECISION)
            b_dV = tl.dot(tl.trans(b_M), b_dY, b_dV, input_precision=PRECISION)
            b_dM = tl.dot(b_dY, tl.trans(b_V), b_dM, input_precision=PRECISION)
            b_dL -= tl.dot(b_dY, tl.trans(b_U), input_precision=PRECISION)
            b_dA = tl.dot(b_dY, b_S, b_dA, input_precision=PRECISION)
            b_G = tl.dot(tl.trans(b_dY), b_A, b_G, input_precision=PRECISION)
            store_block(p_dv, o_t, heads * V, o_v, length, V, b_dV)
            store_state(p_dS, o_v, o_k, V, K, b_G)
        tl.debug_barrier()  # the next chunk's threads may load what others of this program have stored

        # of the decay: what tokens wrote and the state reach the end of the chunk through it
        b_dc = b_dD * b_D + b_dB * b_B
        b_dw_t = tl.cumsum(b_dc, axis=0) - b_dc + b_dw[None, :]
        if p_r is not None:
            b_dP, b_dQ = below(b_dP, True), below(b_dQ, True)
            b_dR = tl.dot(b_dP, b_D, b_dR, input_precision=PRECISION)
            b_dR = tl.dot(b_dQ, b_B, b_dR, input_precision=PRECISION)
            b_dD = tl.dot(tl.trans(b_dP), b_R, b_dD, input_precision=PRECISION)
            b_dB = tl.dot(tl.trans(b_dQ), b_R, b_dB, input_precision=PRECISION)
            b_dc += b_dR * b_R
            store_block(p_dr + i_out * K, o_t, heads * K, o_k, length, K, b_dR * tl.exp(b_c))
        b_dL, b_dM = below(b_dL, False), below(b_dM, False)
        b_dA = tl.dot(b_dM, b_D, b_dA, input_precision=PRECISION)
        b_dA = tl.dot(b_dL, b_B, b_dA, input_precision=PRECISION)
        b_dD = tl.dot(tl.trans(b_dM), b_A, b_dD, input_precision=PRECISION)
        b_dB = tl.dot(tl.trans(b_dL), b_A, b_dB, input_precision=PRECISION)
        b_dc += b_dA * b_A - b_dD * b_D - b_dB * b_B
        b_dw_t += tl.cumsum(b_dc, axis=0, reverse=True) - b_dA * b_A  # A holds the decays before its token
        b_dB *= tl.exp(-b_c)
        b_kappa = load_block(p_kappa, o_t, kappa_t, o_k, length, K)  # again, from the cache: registers are short
        b_a = load_rates(p_a, o_t, a_t, o_k, length, K, KA)
        b_w = load_rates(p_w, o_t, w_t, o_k, length, K, KW)
        store_rates(p_dw + i_out * KW, o_t, heads, o_k, length, K, KW, b_dw_t)
        b_dk = b_dD * tl.exp(-b_c)
        b_dkappa = b_dA * tl.exp(b_c - b_w) + b_dB * b_a
        if KK < K:
            b_dkappa += b_dk * load_rates(p_k, o_t, k_t, o_k, length, K, KK)
            b_dk *= b_kappa
        store_rates(p_dk + i_out * KK, o_t, heads, o_k, length, K, KK, b_dk)
        store_block(p_dkappa + i_out * K, o_t, heads * K, o_k, length, K, b_dkappa)
        store_rates(p_da + i_out * KA, o_t, heads, o_k, length, K, KA, b_dB * b_kappa)
