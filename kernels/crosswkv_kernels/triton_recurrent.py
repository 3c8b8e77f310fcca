"""The recurrence token by token in one launch, for inference on short texts; a step of one token is T = 1.

Bytes per token and head at K = V = 64, bf16: 896; and 16 kB for each of a first and a last state that there are.
"""

import triton
import triton.language as tl

from .triton_chunks import load_state, store_state


@triton.jit(do_not_specialize=["length", "heads"])
def wkv7_recurrent_kernel(
    p_r, p_w, p_k, p_v, p_kappa, p_a, p_o, p_start, p_final,
    r_b, r_t, r_h, w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h,
    length, heads,
    K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Program (head, block of values); the state `[BV, BK]` stays in registers, no matrix product."""
    blocks = tl.cdiv(V, BV)
    i_bh, i_v = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    i_b, i_h = i_bh // heads, i_bh % heads
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_w, o_kk, o_a = o_k % KW, o_k % KK, o_k % KA  # one number for all channels of a head is loaded for each of them
    p_w += i_b * w_b + i_h * w_h + o_w
    p_k += i_b * k_b + i_h * k_h + o_kk
    p_v += i_b * v_b + i_h * v_h + o_v
    p_kappa += i_b * kappa_b + i_h * kappa_h + o_k
    p_a += i_b * a_b + i_h * a_h + o_a
    if p_r is not None:
        p_r += i_b * r_b + i_h * r_h + o_k
        p_o += (i_b * length * heads + i_h) * V + o_v
    if p_start is not None:
        b_S = load_state(p_start + i_bh * V * K, o_v, o_k, V, K).to(tl.float32)
    else:
        b_S = tl.zeros((BV, BK), tl.float32)
    for _ in range(0, length):
        b_w = tl.load(p_w, mask=m_k, other=0.0).to(tl.float32)
        b_k = tl.load(p_k, mask=m_k, other=0.0).to(tl.float32)
        b_v = tl.load(p_v, mask=m_v, other=0.0).to(tl.float32)
        b_kappa = tl.load(p_kappa, mask=m_k, other=0.0).to(tl.float32)
        if KK < K:  # a multiple of the removal key
            b_k *= b_kappa
        b_a = tl.load(p_a, mask=m_k, other=0.0).to(tl.float32)
        b_removed = tl.sum(b_S * b_kappa[None, :], axis=1)
        b_S = b_S * tl.exp(b_w)[None, :] - b_removed[:, None] * (b_a * b_kappa)[None, :]
        b_S += b_v[:, None] * b_k[None, :]
        if p_r is not None:
            b_r = tl.load(p_r, mask=m_k, other=0.0).to(tl.float32)
            tl.store(p_o, tl.sum(b_S * b_r[None, :], axis=1), mask=m_v)
            p_r += r_t
            p_o += heads * V
        p_w += w_t
        p_k += k_t
        p_v += v_t
        p_kappa += kappa_t
        p_a += a_t
    if p_final is not None:
        store_state(p_final + i_bh * V * K, o_v, o_k, V, K, b_S)
