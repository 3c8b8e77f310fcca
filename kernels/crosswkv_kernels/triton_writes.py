"""`state_writes` (equations 8 to 12) as one Triton kernel forward and one backward."""

from typing import Any

import torch
import triton
import triton.language as tl

from .elementwise import keys_are_multiples
from .feature_maps import number_of_features
from .triton_blocks import (
    empty_gradient,
    given,
    load,
    offsets,
    optional_contiguous,
    optional_rows,
    packed,
    row_strides,
    sum_parts,
    token_block,
    tokens_per_block,
)
from .triton_features import (
    feature_columns,
    feature_constants,
    features,
    features_of_partner,
    gradient_of_products,
    load_channels,
    load_or_one,
    slopes,
    store_channels,
)
from .triton_launch import launch

MOST_DECAY = tl.constexpr(0.6065306597126334)  # exp(-0.5)
TINY = tl.constexpr(1e-12)  # of torch.nn.functional.normalize


@triton.jit
def kept(p_mask, i_b, o_t, m_t, s_mask_b, s_mask_t):
    """The tokens of the block that write."""
    if p_mask is None:
        m_kept = m_t
    else:
        m_kept = m_t & (tl.load(p_mask + i_b * s_mask_b + o_t * s_mask_t, mask=m_t, other=0) != 0)
    return m_kept


@triton.jit
def own_columns(i_h, o_k, m_k, K: tl.constexpr, WIDTH: tl.constexpr):
    """Places in a row, and which of them there are, of what a head has K of or, `WIDTH` 1, one."""
    if WIDTH == K:
        o_own, m_own = i_h * K + o_k, m_k
    else:
        o_own, m_own = i_h + tl.arange(0, 1), tl.arange(0, 1) == 0
    return o_own, m_own


# A token and a head, K = V = 64, 16 bits in: decay, rate, key 384 bytes, the four float32 outputs 1,024; value,
# first value, share and v 512 more with a value residual, value and v 256 with a mask alone. With `quadratic`, K = 64,
# V = 16, one decay and rate for a head and no k_k: 36 bytes in, 268 out, and 128 or 64 for the values.
@triton.jit
def writes_forward(
    p_decay, p_rate, p_key, p_value, p_first, p_share, p_k_k, p_k_a, p_mask, p_w, p_k, p_v, p_kappa, p_a,
    s_decay_b, s_decay_t, s_rate_b, s_rate_t, s_key_b, s_key_t, s_value_b, s_value_t, s_first_b, s_first_t,
    s_share_b, s_share_t, s_mask_b, s_mask_t, T, H,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_kept = kept(p_mask, i_b, o_t, m_t, s_mask_b, s_mask_t)
    i_row = i_b * T + o_t

    o_k, m_k, o_n, o_partner = feature_columns(i_h, N, BN, tl.arange(0, BK))
    o_w, m_w = own_columns(i_h, o_k, m_k, K, KW)
    o_kk, m_kk = own_columns(i_h, o_k, m_k, K, KK)
    o_a, m_a = own_columns(i_h, o_k, m_k, K, KA)
    m_in = m_kept[:, None] & m_k[None, :]
    m_decay, m_rate = m_kept[:, None] & m_w[None, :], m_kept[:, None] & m_a[None, :]
    b_w = tl.sigmoid(load(p_decay, offsets(i_b, o_t, s_decay_b, s_decay_t, o_w), m_decay)) * -MOST_DECAY  # (8)
    tl.store(p_w + packed(i_row, H * KW, o_w), tl.where(m_decay, b_w, 0), mask=m_t[:, None] & m_w[None, :])
    b_rate = load(p_rate, offsets(i_b, o_t, s_rate_b, s_rate_t, o_a), m_rate)
    b_a = tl.where(m_rate, tl.sigmoid(b_rate), 0)  # (9)
    tl.store(p_a + packed(i_row, H * KA, o_a), b_a, mask=m_t[:, None] & m_a[None, :])
    b_x, b_partner = load_channels(p_key, i_b, o_t, s_key_b, s_key_t, o_n, o_partner, m_in, MAP)
    b_key = features(b_x, b_partner, o_k, N, BN, MAP)
    b_kappa = b_key * load_or_one(p_k_k, i_h * K + o_k, m_k)[None, :]  # (11)
    b_norm = tl.sqrt(tl.sum(b_kappa * b_kappa, 1))[:, None]
    m = m_t[:, None] & m_k[None, :]
    tl.store(p_kappa + packed(i_row, H * K, i_h * K + o_k), b_kappa / tl.maximum(b_norm, TINY), mask=m)
    b_k = 1 - tl.sigmoid(-b_rate) * load(p_k_a, o_a, m_a)[None, :]
    b_k *= b_key if KK == K else b_norm
    tl.store(p_k + packed(i_row, H * KK, o_kk), b_k, mask=m_t[:, None] & m_kk[None, :])

    if p_value is not None:
        m_v = tl.arange(0, BV) < V
        o_v = i_h * V + tl.arange(0, BV)
        m_in = m_kept[:, None] & m_v[None, :]
        b_v = load(p_value, offsets(i_b, o_t, s_value_b, s_value_t, o_v), m_in)
        if p_first is not None:  # (10)
            b_first = load(p_first, offsets(i_b, o_t, s_first_b, s_first_t, o_v), m_in)
            b_share = load(p_share, offsets(i_b, o_t, s_share_b, s_share_t, o_v), m_in)
            b_v += tl.sigmoid(b_share) * (b_first - b_v)
        tl.store(p_v + packed(i_row, H * V, o_v), b_v, mask=m_t[:, None] & m_v[None, :])


@triton.jit
def key_gradient(b_dk, b_dkappa, b_key, b_k_k, b_kept, b_along, b_scale):
    """Of the features: through k, which takes the share `b_kept` of them, and through kappa."""
    b_dz = (b_dkappa - b_key * b_k_k * (b_scale * b_along)[:, None]) * b_scale[:, None]
    return b_dk * b_kept + b_dz * b_k_k


# A token and a head, K = V = 64, 16 bits in: 768 bytes in and out of decay, rate and key, 1,024 for the gradients of
# the four float32 outputs, and 512 / BT for those of k_k and k_a; with a value residual 896 more.
@triton.jit
def writes_backward(
    p_dw, p_dk, p_dv, p_dkappa, p_da, p_decay, p_rate, p_key, p_value, p_first, p_share, p_k_k, p_k_a, p_mask,
    p_ddecay, p_drate, p_dkey, p_dvalue, p_dfirst, p_dshare, p_dk_k, p_dk_a,
    s_dw_b, s_dw_t, s_dk_b, s_dk_t, s_dv_b, s_dv_t, s_dkappa_b, s_dkappa_t, s_da_b, s_da_t,
    s_decay_b, s_decay_t, s_rate_b, s_rate_t, s_key_b, s_key_t, s_value_b, s_value_t, s_first_b, s_first_t,
    s_share_b, s_share_t, s_mask_b, s_mask_t, T, H,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, KA: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_kept = kept(p_mask, i_b, o_t, m_t, s_mask_b, s_mask_t)
    i_row = i_b * T + o_t

    o_k, m_k, o_n, o_partner = feature_columns(i_h, N, BN, tl.arange(0, BK))
    o_w, o_kk, o_a, o_kt = i_h * KW + o_k % KW, i_h * KK + o_k % KK, i_h * KA + o_k % KA, i_h * K + o_k
    m = m_t[:, None] & m_k[None, :]
    m_in = m_kept[:, None] & m_k[None, :]
    m_w, m_a = m & (o_k < KW)[None, :], m & (o_k < KA)[None, :]
    b_decay = load(p_decay, offsets(i_b, o_t, s_decay_b, s_decay_t, o_w), m_in)
    b_dw = load(p_dw, offsets(i_b, o_t, s_dw_b, s_dw_t, o_w), m_in)
    b_ddecay = b_dw * tl.sigmoid(b_decay) * tl.sigmoid(-b_decay) * -MOST_DECAY
    tl.store(p_ddecay + packed(i_row, H * KW, o_w), b_ddecay, mask=m_w)

    b_x, b_partner = load_channels(p_key, i_b, o_t, s_key_b, s_key_t, o_n, o_partner, m_in, MAP)
    b_key = features(b_x, b_partner, o_k, N, BN, MAP)
    b_k_k = load_or_one(p_k_k, o_kt, m_k)[None, :]
    b_k_a = load(p_k_a, o_a, m_k)[None, :]
    b_norm = tl.sqrt(tl.sum(b_key * b_k_k * (b_key * b_k_k), 1))
    b_scale = 1 / tl.maximum(b_norm, TINY)
    b_kappa = b_key * b_k_k * b_scale[:, None]
    b_dk = load(p_dk, offsets(i_b, o_t, s_dk_b, s_dk_t, o_kk), m_in)
    if KK < K:  # of the features, through their norm
        b_dk *= b_kappa
    b_rate = load(p_rate, offsets(i_b, o_t, s_rate_b, s_rate_t, o_a), m_in)
    b_rest = tl.sigmoid(-b_rate)  # 1 - a
    b_da = b_dk * b_key * b_k_a
    b_dk_a = -tl.sum(b_dk * b_key * b_rest, 0)
    if KA < K:
        b_da = tl.sum(b_da, 1)[:, None]
        b_dk_a = tl.sum(b_dk_a, 0)
    b_da += load(p_da, offsets(i_b, o_t, s_da_b, s_da_t, o_a), m_in)
    tl.store(p_drate + packed(i_row, H * KA, o_a), b_da * tl.sigmoid(b_rate) * b_rest, mask=m_a)

    b_dkappa = load(p_dkappa, offsets(i_b, o_t, s_dkappa_b, s_dkappa_t, o_kt), m_in)
    b_along = tl.where(b_norm >= TINY, tl.sum(b_dkappa * b_kappa, 1), 0)  # a smaller norm is a constant there
    b_dkey = key_gradient(b_dk, b_dkappa, b_key, b_k_k, 1 - b_rest * b_k_a, b_along, b_scale)
    if MAP == "quadratic":  # a channel is the first of four products and the second of four others
        o_back, o_back_n = features_of_partner(o_k, i_h, N)
        o_ba, o_back_t = i_h * KA + o_back % KA, i_h * K + o_back
        b_y = load(p_key, offsets(i_b, o_t, s_key_b, s_key_t, o_back_n), m_in)
        b_rest_back = tl.sigmoid(-load(p_rate, offsets(i_b, o_t, s_rate_b, s_rate_t, o_ba), m_in))
        b_kept_back = 1 - b_rest_back * load(p_k_a, o_ba, m_k)[None, :]
        b_key_back = features(b_y, b_x, o_k, N, BN, MAP)
        b_dk_back = load(p_dk, offsets(i_b, o_t, s_dk_b, s_dk_t, i_h * KK + o_back % KK), m_in)
        if KK < K:
            b_dk_back *= b_key_back * b_scale[:, None]
        b_dback = key_gradient(
            b_dk_back,
            load(p_dkappa, offsets(i_b, o_t, s_dkappa_b, s_dkappa_t, o_back_t), m_in),
            b_key_back,
            load_or_one(p_k_k, o_back_t, m_k)[None, :],
            b_kept_back, b_along, b_scale,
        )  # fmt: skip
        b_dx = gradient_of_products(b_dkey, b_dback, b_x, b_partner, b_y, o_k, N, BN)
        store_channels(p_dkey, b_dx, i_row, H * N, i_h * N, m_t, N, BN, BT)
    else:
        tl.store(p_dkey + packed(i_row, H * N, i_h * N + o_k), b_dkey * slopes(b_x, MAP), mask=m)
    i_part = tl.program_id(0).to(tl.int64)
    if p_k_k is not None:
        b_dz = (b_dkappa - b_kappa * b_along[:, None]) * b_scale[:, None]
        tl.store(p_dk_k + i_part * H * K + o_kt, tl.sum(b_dz * b_key, 0), mask=m_k)
    tl.store(p_dk_a + i_part * H * KA + o_a, b_dk_a, mask=m_k & (o_k < KA))

    if p_value is not None:
        m_v = tl.arange(0, BV) < V
        o_v = i_h * V + tl.arange(0, BV)
        m = m_t[:, None] & m_v[None, :]
        m_in = m_kept[:, None] & m_v[None, :]
        o_out = packed(i_row, H * V, o_v)
        b_dv = load(p_dv, offsets(i_b, o_t, s_dv_b, s_dv_t, o_v), m_in)
        if p_first is None:
            tl.store(p_dvalue + o_out, b_dv, mask=m)
        else:
            b_value = load(p_value, offsets(i_b, o_t, s_value_b, s_value_t, o_v), m_in)
            b_first = load(p_first, offsets(i_b, o_t, s_first_b, s_first_t, o_v), m_in)
            b_share = load(p_share, offsets(i_b, o_t, s_share_b, s_share_t, o_v), m_in)
            b_dfirst = b_dv * tl.sigmoid(b_share)
            b_dvalue = b_dv * tl.sigmoid(-b_share)
            tl.store(p_dfirst + o_out, b_dfirst, mask=m)
            tl.store(p_dvalue + o_out, b_dvalue, mask=m)
            tl.store(p_dshare + o_out, b_dfirst * tl.sigmoid(-b_share) * (b_first - b_value), mask=m)


def constants_of(
    key: torch.Tensor,
    value: torch.Tensor | None,
    decay: torch.Tensor,
    rate: torch.Tensor,
    k_k: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
) -> dict[str, Any]:
    N = key.shape[2] // num_heads
    constants = feature_constants(N, feature_map)
    V = constants["K"] if value is None else value.shape[2] // num_heads
    BV = triton.next_power_of_2(V)
    KW, KA = (x.shape[2] // num_heads for x in (decay, rate))
    KK = 1 if keys_are_multiples(rate, k_k, num_heads, constants["K"]) else constants["K"]
    BT = tokens_per_block(max(constants["BK"], BV))
    return constants | {"V": V, "KW": KW, "KK": KK, "KA": KA, "BV": BV, "BT": BT}


@torch.library.custom_op("crosswkv::state_writes", mutates_args=())
def state_writes(
    decay: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    first_value: torch.Tensor | None,
    value_share: torch.Tensor | None,
    k_k: torch.Tensor | None,
    k_a: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """w, k, v, kappa and a, heads not yet apart: w as wide as decay, a as rate, v empty if value is None.

    k is `[B, T, H]` where `keys_are_multiples`.
    """
    outputs = empty_writes(decay, rate, key, value, first_value, value_share, k_k, k_a, mask, num_heads, feature_map)
    batch_size, length, _ = key.shape
    constants = constants_of(key, value, decay, rate, k_k, num_heads, feature_map)
    streams = [optional_rows(x) for x in (decay, rate, key, value, first_value, value_share)]
    tensors = (*streams, optional_contiguous(k_k), k_a.contiguous(), mask, *outputs)
    grid = (batch_size * triton.cdiv(length, constants["BT"]), num_heads)
    strides = row_strides(*streams, mask)
    launch(writes_forward, grid, *tensors, *strides, length, num_heads, num_warps=4, **constants)
    return outputs


@state_writes.register_fake
def empty_writes(decay, rate, key, value, first_value, value_share, k_k, k_a, mask, num_heads, feature_map):
    of_features = (*key.shape[:2], number_of_features(feature_map, key.shape[2]))
    multiples = keys_are_multiples(rate, k_k, num_heads, of_features[2] // num_heads)
    of_keys = rate.shape if multiples else of_features
    shapes = (decay.shape, of_keys, of_features, rate.shape)
    w, k, kappa, a = (key.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return w, k, key.new_empty(0) if value is None else value.new_empty(value.shape), kappa, a


@torch.library.custom_op("crosswkv::state_writes_backward", mutates_args=())
def state_writes_backward(
    dw: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor | None,
    dkappa: torch.Tensor,
    da: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    first_value: torch.Tensor | None,
    value_share: torch.Tensor | None,
    k_k: torch.Tensor | None,
    k_a: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
) -> list[torch.Tensor]:
    """Gradients of decay, rate, key, value, first_value, value_share, k_k and k_a; empty for what is None."""
    inputs = (decay, rate, key, value, first_value, value_share, k_k, k_a)
    gradients = [empty_gradient(x, key) for x in inputs]
    batch_size, length, _ = key.shape
    constants = constants_of(key, value, decay, rate, k_k, num_heads, feature_map)
    num_blocks = batch_size * triton.cdiv(length, constants["BT"])
    factors = [x for x in (k_k, k_a) if x is not None]
    parts = [x.new_empty(num_blocks, *x.shape, dtype=torch.float32) for x in factors]
    cotangents = [optional_rows(x) for x in (dw, dk, dv, dkappa, da)]
    streams = [optional_rows(x) for x in inputs[:6]]
    outputs = (*gradients[:6], *[None] * (k_k is None), *parts)
    tensors = (*cotangents, *streams, optional_contiguous(k_k), k_a.contiguous(), mask, *outputs)
    strides = row_strides(*cotangents, *streams, mask)
    launch(writes_backward, (num_blocks, num_heads), *tensors, *strides, length, num_heads, num_warps=8, **constants)
    return [*gradients[:6], *gradients[6:7] * (k_k is None), *sum_parts(parts, factors)]


@state_writes_backward.register_fake
def empty_gradients(dw, dk, dv, dkappa, da, decay, rate, key, value, first_value, value_share, k_k, k_a, *_):
    return [empty_gradient(x, key) for x in (decay, rate, key, value, first_value, value_share, k_k, k_a)]


def keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.num_heads, ctx.feature_map = inputs
    ctx.save_for_backward(*tensors)


def gradients(ctx, dw, dk, dv, dkappa, da):
    tensors = ctx.saved_tensors
    dv = None if tensors[3] is None else dv
    found = state_writes_backward(dw, dk, dv, dkappa, da, *tensors, ctx.num_heads, ctx.feature_map)
    return *given(found, tensors[:8]), None, None, None


state_writes.register_autograd(gradients, setup_context=keep_inputs)
