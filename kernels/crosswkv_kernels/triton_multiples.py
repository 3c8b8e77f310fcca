"""The state alone, where a token has one decay, one rate and one direction of keys per head, as Triton kernels.

`chunked_multiples.py` has the algebra. It takes fewer products than `triton_wkv7.py` makes for decays and keys of all
channels, and of blocks `[BT, BK]` in registers kappa alone.

Bytes per token and head, K = 64, V = 16, kappa in float32 as `state_writes` returns it, values in bf16:

    forward                300 = 256 (kappa) + 32 (v) + 12 (w k a)
    forward, kept states   256 more, for 16 x 64 floats every 16 tokens, where a gradient will be asked for
    backward               856 = 300 + 256 (states) + 300 (dw dk dv dkappa da)
    inverses               392 more for each: 264 (kappa w a) in, 64 out and, behind that, in
"""

import triton
import triton.language as tl

from .triton_chunks import (
    below,
    exact,
    invert,
    load_block,
    load_state,
    rounded,
    store_block,
    store_state,
    tokens_of_chunk,
)


@triton.jit
def load_numbers(p_x, x_t, o_t, length):
    """`[BT]`: one of each token."""
    return tl.load(p_x + o_t * x_t, mask=o_t < length, other=0.0).to(tl.float32)


@triton.jit
def load_factors(p_w, p_k, p_a, w_t, k_t, a_t, o_t, length):
    """A token's decay, what its key is multiplied by, and its rate."""
    b_w, b_k = load_numbers(p_w, w_t, o_t, length), load_numbers(p_k, k_t, o_t, length)
    return b_w, b_k, load_numbers(p_a, a_t, o_t, length)


@triton.jit
def factors_of(b_w, b_a):
    """`[BT]`: what is left of a token's write at the chunk's end, rho; and e^c_last of the chunk."""
    last = tl.sum(b_w, axis=0)
    return tl.exp(last - tl.cumsum(b_w, axis=0)), b_a * tl.exp(-b_w), tl.exp(last)


@triton.jit
def load_keys(p_kappa, kappa_t, o_t, o_k, length, K: tl.constexpr, PRECISION: tl.constexpr):
    """kappa; tril(kappa kappa^T, -1)."""
    b_kappa = rounded(load_block(p_kappa, o_t, kappa_t, o_k, length, K), PRECISION)
    return b_kappa, below(tl.dot(b_kappa, tl.trans(b_kappa), input_precision=PRECISION), False)


@triton.jit
def keys_times(b_kappa, b_S, PRECISION: tl.constexpr):
    """`kappa S^T`: one pass of tf32 takes keys whole (they are rounded) and most of S, a second one the rest."""
    if PRECISION == "tf32":
        b_most = rounded(b_S, PRECISION)
        b_rest = tl.dot(b_kappa, tl.trans(b_S - b_most), input_precision=PRECISION)
        return tl.dot(b_kappa, tl.trans(b_most), b_rest, input_precision=PRECISION)
    return tl.dot(b_kappa, tl.trans(b_S), input_precision=PRECISION)


@triton.jit
def times_keys(b_P, b_kappa, PRECISION: tl.constexpr):
    """`P^T kappa`, as exact."""
    if PRECISION == "tf32":
        b_most = rounded(b_P, PRECISION)
        b_rest = tl.dot(tl.trans(b_P - b_most), b_kappa, input_precision=PRECISION)
        return tl.dot(tl.trans(b_most), b_kappa, b_rest, input_precision=PRECISION)
    return tl.dot(tl.trans(b_P), b_kappa, input_precision=PRECISION)


@triton.jit
def changes(b_kappa, b_S, b_X, b_V, b_written, b_removed, PRECISION: tl.constexpr):
    """kappa S_0^T, and P, what the tokens of a chunk change in the state: `[BT, BV]`."""
    b_found = keys_times(b_kappa, b_S, PRECISION)
    b_right = b_V * b_written[:, None] - b_found * b_removed[:, None]
    return b_found, tl.dot(b_X, b_right, input_precision=exact(PRECISION))


@triton.jit(do_not_specialize=["length", "heads"])
def multiples_inverses_kernel(
    p_w, p_kappa, p_a, p_X, w_b, w_t, w_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h, length, heads,
    K: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (chunk of a head): (I + L)^-1 `[BT, BT]`; no state is a part of it, so no chunk waits for another."""
    chunks = tl.cdiv(length, BT)
    i_bh, i_c = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t = tokens_of_chunk(i_c, BT, WIDE)
    b_w = load_numbers(p_w + i_b * w_b + i_h * w_h, w_t, o_t, length)
    b_a = load_numbers(p_a + i_b * a_b + i_h * a_h, a_t, o_t, length)
    p_kappa += i_b * kappa_b + i_h * kappa_h
    _, b_gram = load_keys(p_kappa, kappa_t, o_t, tl.arange(0, BK), length, K, PRECISION)
    b_X = invert(b_gram * (b_a * tl.exp(-b_w))[:, None], PRECISION)
    o_i = tl.arange(0, BT)
    store_state(p_X + (i_bh * chunks + i_c) * BT * BT, o_i, o_i, BT, BT, b_X)


@triton.jit(do_not_specialize=["length", "heads"])
def multiples_forward_kernel(
    p_w, p_k, p_v, p_kappa, p_a, p_start, p_final, p_saved, p_X,
    w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head, block of values): its chunks one after another, the state in registers."""
    blocks = tl.cdiv(V, BV)
    i_bh, i_v = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    i_b, i_h = i_bh // heads, i_bh % heads
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    chunks = tl.cdiv(length, BT)
    p_w += i_b * w_b + i_h * w_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    if p_start is not None:
        b_S = load_state(p_start + i_bh * V * K, o_v, o_k, V, K).to(tl.float32)
    else:
        b_S = tl.zeros((BV, BK), tl.float32)
    p_X += i_bh * chunks * BT * BT
    o_i = tl.arange(0, BT)
    o_t = tokens_of_chunk(0, BT, WIDE)
    n_w, n_k, n_a = load_factors(p_w, p_k, p_a, w_t, k_t, a_t, o_t, length)
    n_V, n_kappa = load_block(p_v, o_t, v_t, o_v, length, V), load_block(p_kappa, o_t, kappa_t, o_k, length, K)
    n_X = load_block(p_X, o_i, BT, o_i, length, BT)
    for i_c in range(0, chunks):
        if p_saved is not None:
            store_state(p_saved + (i_bh * chunks + i_c) * V * K, o_v, o_k, V, K, b_S)
        b_w, b_k, b_a, b_kappa, b_V, b_X = n_w, n_k, n_a, n_kappa, n_V, n_X
        # what the next chunk reads is on its way while this one is computed
        o_t = tokens_of_chunk(i_c + 1, BT, WIDE)
        n_w, n_k, n_a = load_factors(p_w, p_k, p_a, w_t, k_t, a_t, o_t, length)
        n_V, n_kappa = load_block(p_v, o_t, v_t, o_v, length, V), load_block(p_kappa, o_t, kappa_t, o_k, length, K)
        p_X += BT * BT
        n_X = load_block(p_X, o_i, BT, o_i, length - (i_c + 1) * BT, BT)
        b_left, b_rho, decay = factors_of(b_w, b_a)
        b_kappa = rounded(b_kappa, PRECISION)
        _, b_P = changes(b_kappa, b_S, b_X, b_V, b_k * b_left, b_rho * decay, PRECISION)
        b_S = b_S * decay + times_keys(b_P, b_kappa, PRECISION)
    if p_final is not None:
        store_state(p_final + i_bh * V * K, o_v, o_k, V, K, b_S)


@triton.jit(do_not_specialize=["length", "heads"])
def multiples_backward_kernel(
    p_w, p_k, p_v, p_kappa, p_a, p_saved, p_dS, p_dw, p_dk, p_dv, p_dkappa, p_da, p_X,
    w_b, w_t, w_h, k_b, k_t, k_h, v_b, v_t, v_h, kappa_b, kappa_t, kappa_h, a_b, a_t, a_h, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (head): its chunks from last to first, and in each of them the values in blocks.

    `p_dS` holds the state's gradient, that at the end when the program starts, that at the start when it is done.
    """
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    EXACT: tl.constexpr = exact(PRECISION)
    o_k, o_i, o_x = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    chunks = tl.cdiv(length, BT)
    p_w += i_b * w_b + i_h * w_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_kappa += i_b * kappa_b + i_h * kappa_h
    p_a += i_b * a_b + i_h * a_h
    p_dS += i_bh * V * K
    i_out = i_b * length * heads + i_h
    for i in range(0, chunks):
        i_c = chunks - 1 - i
        o_t = tokens_of_chunk(i_c, BT, WIDE)
        b_w, b_k, b_a = load_factors(p_w, p_k, p_a, w_t, k_t, a_t, o_t, length)
        b_left, b_rho, decay = factors_of(b_w, b_a)
        b_kappa, b_gram = load_keys(p_kappa, kappa_t, o_t, o_k, length, K, PRECISION)
        b_X = tl.load(p_X + (i_bh * chunks + i_c) * BT * BT + o_x[:, None] * BT + o_x[None, :])
        b_dkappa = tl.zeros((BT, BK), tl.float32)
        b_dgram = tl.zeros((BT, BT), tl.float32)
        b_drho = tl.zeros((BT,), tl.float32)
        b_dk = tl.zeros((BT,), tl.float32)
        b_dlast = tl.zeros((BK,), tl.float32)  # of all decays of the chunk
        for i_v in range(0, tl.cdiv(V, BV)):
            o_v = i_v * BV + o_i
            b_S = load_state(p_saved + (i_bh * chunks + i_c) * V * K, o_v, o_k, V, K)
            b_dS = load_state(p_dS, o_v, o_k, V, K)
            b_V = load_block(p_v, o_t, v_t, o_v, length, V)
            b_found, b_P = changes(b_kappa, b_S, b_X, b_V, b_k * b_left, b_rho * decay, PRECISION)
            b_dP = keys_times(b_kappa, b_dS, PRECISION)
            b_R = tl.dot(tl.trans(b_X), b_dP, input_precision=EXACT)  # of what stands on the right
            b_U = tl.dot(b_gram, b_P, b_found * decay, input_precision=EXACT)
            b_drho -= tl.sum(b_R * b_U, axis=1)
            b_dk += tl.sum(b_R * b_V, axis=1)
            store_block(p_dv + i_out * V, o_t, heads * V, o_v, length, V, b_R * (b_k * b_left)[:, None])
            b_dgram -= tl.dot(b_R, tl.trans(b_P), input_precision=PRECISION)
            b_dkappa = tl.dot(b_P, b_dS, b_dkappa, input_precision=PRECISION)
            b_R *= b_rho[:, None]
            b_dkappa -= tl.dot(b_R * decay, b_S, input_precision=PRECISION)
            b_dS = (b_dS - times_keys(b_R, b_kappa, PRECISION)) * decay
            b_dlast += tl.sum(b_S * b_dS, axis=0)
            store_state(p_dS, o_v, o_k, V, K, b_dS)
        tl.debug_barrier()  # the next chunk's threads may load what others of this program have stored

        b_dgram = below(b_dgram, False) * b_rho[:, None]
        b_dkappa = tl.dot(b_dgram + tl.trans(b_dgram), b_kappa, b_dkappa, input_precision=PRECISION)
        store_block(p_dkappa + i_out * K, o_t, heads * K, o_k, length, K, b_dkappa)
        b_dk *= b_left
        b_before = tl.cumsum(b_dk * b_k, axis=0) - b_dk * b_k  # of the tokens before each one
        mask, o_out = o_t < length, i_out + o_t * heads
        tl.store(p_dw + o_out, b_before + tl.sum(b_dlast, axis=0) - b_rho * b_drho, mask=mask)
        tl.store(p_dk + o_out, b_dk, mask=mask)
        tl.store(p_da + o_out, b_drho * tl.exp(-b_w), mask=mask)
