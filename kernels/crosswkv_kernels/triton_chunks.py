"""What the Triton kernels share that walk over a sequence in chunks.

Inside a chunk that starts from the state `S`, with `c` the running sum of the log decays,

    A = kappa e^(c - w),  R = r e^c,  B = kappa a e^-c,  D = k e^-c                       [BT, K]
    L = tril(A B^T, -1),  M = tril(A D^T, -1),  P = tril(R D^T),  Q = tril(R B^T)         [BT, BT]
    (I + L) U = A S^T + M V                                                               [BT, V]
    O = R S^T + P V - Q U,    S_next = (S + V^T D - U^T B) e^c_last

as in `chunked.py`. A step decays by at most exp(-0.6065), so that the factors of a chunk of 16 stay within e^(+-10)
and need no centring.
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
