"""The recurrence in chunks, forward and backward, as Triton kernels.

Inside a chunk that starts from the state `S`, with `c` the running sum of the log decays,

    A = kappa e^(c - w),  R = r e^c,  B = kappa a e^-c,  D = k e^-c                       [BT, K]
    L = tril(A B^T, -1),  M = tril(A D^T, -1),  P = tril(R D^T),  Q = tril(R B^T)         [BT, BT]
    (I + L) U = A S^T + M V                                                               [BT, V]
    O = R S^T + P V - Q U,    S_next = (S + V^T D - U^T B) e^c_last

as in `chunked.py`. A step decays by at most exp(-0.6065), so that the factors of a chunk of 16 stay within e^(+-10)
and need no centring. One program owns a head and a block of its values: rows of `S` do not depend on each other.

A scan of few heads over many tokens is cut into segments that run in parallel. A segment maps the state it starts
from to `S X + Y`; `wkv7_segments_kernel` computes `X` (`K x K`) and `Y`, `wkv7_combine_kernel` passes states from
segment to segment, and the scan proper then starts everywhere at once. The gradient goes the same way back.

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


@triton.constexpr_function
def exact(precision, width=64):
    """The precision of products that remove something from a state, where one pass of tf32 is not enough.

    Tensor cores cut digits off, always towards zero: each token would remove a little too little, and the error of a
    state that forgets nothing would grow with its age, to several percent in a thousand tokens.
    Where heads are wider than 64 channels, a program of all values has no shared memory for more than one pass.
    """
    return "tf32x3" if precision == "tf32" and width <= 64 else precision


@triton.jit
def rounded(b_x, PRECISION: tl.constexpr):
    """To the nearest number that one pass of tf32 takes whole: such errors cancel, and it needs fewer registers."""
    if PRECISION == "tf32":
        b_x = ((b_x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return b_x


@triton.jit
def tokens_of_chunk(i_c, BT: tl.constexpr, WIDE: tl.constexpr):
    """64 bits only where a sequence needs them: offsets fill registers."""
    o_t = i_c * BT + tl.arange(0, BT)
    return o_t.to(tl.int64) if WIDE else o_t


@triton.jit
def load_block(p, o_t, stride_t, o_d, length, D: tl.constexpr):
    """`[BT, BD]` in float32; zero outside of the sequence and of the head: such tokens do nothing."""
    mask = (o_t < length)[:, None] & (o_d < D)[None, :]
    return tl.load(p + o_t[:, None] * stride_t + o_d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_rates(p, o_t, stride_t, o_k, length, K: tl.constexpr, WIDTH: tl.constexpr):
    """The same of what a token has K of or, `WIDTH` 1, one for all channels of the head."""
    if WIDTH == K:
        b_x = load_block(p, o_t, stride_t, o_k, length, K)
    else:
        b_x = tl.load(p + o_t * stride_t, mask=o_t < length, other=0.0).to(tl.float32)[:, None]
    return tl.broadcast_to(b_x, [o_t.shape[0], o_k.shape[0]])


@triton.jit
def load_keys(p, o_t, stride_t, o_k, length, p_kappa, stride_kappa, K: tl.constexpr, KK: tl.constexpr):
    """Replacement keys; with `KK` 1 they are multiples of the removal keys, which are loaded again, from the cache."""
    b_k = load_rates(p, o_t, stride_t, o_k, length, K, KK)
    if KK < K:
        b_k *= load_block(p_kappa, o_t, stride_kappa, o_k, length, K)
    return b_k


@triton.jit
def store_block(p, o_t, stride_t, o_d, length, D: tl.constexpr, b_x):
    mask = (o_t < length)[:, None] & (o_d < D)[None, :]
    tl.store(p + o_t[:, None] * stride_t + o_d[None, :], b_x, mask=mask)


@triton.jit
def store_rates(p, o_t, heads, o_k, length, K: tl.constexpr, WIDTH: tl.constexpr, b_x):
    """The gradient of what `load_rates` has loaded; `p` is that of the sequence's first token in this head."""
    if WIDTH == K:
        store_block(p, o_t, heads * K, o_k, length, K, b_x)
    else:
        tl.store(p + o_t * heads, tl.sum(b_x, axis=1), mask=o_t < length)


@triton.jit
def load_state(p, o_v, o_k, V: tl.constexpr, K: tl.constexpr):
    return tl.load(p + o_v[:, None] * K + o_k[None, :], mask=(o_v < V)[:, None] & (o_k < K)[None, :], other=0.0)


@triton.jit
def store_state(p, o_v, o_k, V: tl.constexpr, K: tl.constexpr, b_s):
    tl.store(p + o_v[:, None] * K + o_k[None, :], b_s, mask=(o_v < V)[:, None] & (o_k < K)[None, :])


@triton.jit
def below(b_x, DIAGONAL: tl.constexpr):
    """The lower triangle of a `[BT, BT]` block, with or without its diagonal."""
    o_i = tl.arange(0, b_x.shape[0])
    if DIAGONAL:
        return tl.where(o_i[:, None] >= o_i[None, :], b_x, 0.0)
    return tl.where(o_i[:, None] > o_i[None, :], b_x, 0.0)


@triton.jit
def invert(b_L, PRECISION: tl.constexpr):
    """`(I + L)^-1` of a strictly lower triangular `[BT, BT]` by block doubling.

    Before a round the blocks of `s` rows on the diagonal are inverted; it joins them in pairs. Every iterate is a true
    sub-inverse, which a power series of L is not: on near-identical keys its terms are huge and cancel.
    """
    BT: tl.constexpr = b_L.shape[0]
    o_i = tl.arange(0, BT)
    pair = (o_i[:, None] // 2 == o_i[None, :] // 2) & (o_i[:, None] > o_i[None, :])
    b_X = tl.where(o_i[:, None] == o_i[None, :], 1.0, 0.0) - tl.where(pair, b_L, 0.0)
    for i in tl.static_range(1, 6):
        if 2**i < BT:
            row, column = o_i[:, None] // (2**i), o_i[None, :] // (2**i)
            joined = tl.where((row == column + 1) & (row % 2 == 1), b_L, 0.0)
            b_Y = tl.dot(b_X, joined, input_precision=exact(PRECISION))
            b_X -= tl.dot(b_Y, b_X, input_precision=exact(PRECISION))
    return b_X


@triton.jit
def load_writes(
    p_w, p_kappa, p_a, stride_w, stride_kappa, stride_a, o_t, o_k, length,
    K: tl.constexpr, KW: tl.constexpr, KA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What every pass over a chunk begins with: w and c; A and B; (I + L)^-1."""
    b_w = load_rates(p_w, o_t, stride_w, o_k, length, K, KW)
    b_kappa = load_block(p_kappa, o_t, stride_kappa, o_k, length, K)
    b_a = load_rates(p_a, o_t, stride_a, o_k, length, K, KA)
    b_c = tl.cumsum(b_w, axis=0)
    b_A = rounded(b_kappa * tl.exp(b_c - b_w), PRECISION)
    b_B = rounded(b_kappa * b_a * tl.exp(-b_c), PRECISION)
    b_L = below(tl.dot(b_A, tl.trans(b_B), input_precision=PRECISION), False)
    return b_w, b_c, b_A, b_B, invert(b_L, PRECISION)


@triton.jit
def removed_values(b_A, b_S, b_M, b_V, b_X, PRECISION: tl.constexpr):
    """U, what the tokens of a chunk find under their removal keys: `[BT, BV]`."""
    b_U = tl.dot(b_A, tl.trans(b_S), input_precision=PRECISION)
    return tl.dot(b_X, tl.dot(b_M, b_V, b_U, input_precision=PRECISION), input_precision=PRECISION)


@triton.jit
def next_state(b_S, b_V, b_D, b_U, b_B, b_w, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """The state behind a chunk."""
    b_S = tl.dot(tl.trans(b_V), b_D, b_S, input_precision=PRECISION)
    b_S -= tl.dot(tl.trans(b_U), b_B, input_precision=EXACT)
    return b_S * tl.exp(tl.sum(b_w, axis=0))[None, :]


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
        b_U = removed_values(b_A, b_S, b_M, b_V, b_X, exact(PRECISION, BK))
        b_S = next_state(b_S, b_V, b_D, b_U, b_B, b_w, PRECISION, exact(PRECISION, BK))
        b_T = rounded(b_T, PRECISION)
        b_U = tl.dot(b_A, tl.trans(b_T), input_precision=PRECISION)
        b_U = tl.dot(b_X, b_U, input_precision=exact(PRECISION, BK))
        b_T -= tl.dot(tl.trans(b_U), b_B, input_precision=exact(PRECISION, BK))
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
        b_dU = tl.dot(b_B, tl.trans(b_G), input_precision=exact(PRECISION, BK))
        b_dU = tl.dot(tl.trans(b_Q), b_dO, b_dU, input_precision=PRECISION)
        b_dY = tl.dot(tl.trans(b_X), b_dU, input_precision=exact(PRECISION, BK))
        b_dS = tl.dot(tl.trans(b_dO), b_R, b_G, input_precision=PRECISION)
        b_dS -= tl.dot(tl.trans(b_dY), b_A, input_precision=exact(PRECISION, BK))
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
        b_S = tl.dot(b_S, b_X, input_precision=exact(PRECISION, BK))
        if p_Y is not None:
            b_S += load_state(p_Y + i_p * V * K, o_v, o_k, V, K)
