"""`state_writes` (equations 8 to 12) as one Triton kernel forward and one backward."""

import torch
import triton
import triton.language as tl

from .triton_blocks import (
    empty_gradient,
    given,
    load,
    offsets,
    optional_rows,
    packed,
    row_strides,
    sum_parts,
    token_block,
    tokens_per_block,
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


# A token and a head, K = V = 64, 16 bits in: decay, rate, key 384 bytes, the four float32 outputs 1,024; value,
# first value, share and v 512 more with a value residual, value and v 256 with a mask alone.
@triton.jit
def writes_forward(
    p_decay, p_rate, p_key, p_value, p_first, p_share, p_k_k, p_k_a, p_mask, p_w, p_k, p_v, p_kappa, p_a,
    s_decay_b, s_decay_t, s_rate_b, s_rate_t, s_key_b, s_key_t, s_value_b, s_value_t, s_first_b, s_first_t,
    s_share_b, s_share_t, s_mask_b, s_mask_t, T, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_kept = kept(p_mask, i_b, o_t, m_t, s_mask_b, s_mask_t)
    i_row = i_b * T + o_t

    m_k = tl.arange(0, BK) < K
    o_k = i_h * K + tl.arange(0, BK)
    m = m_t[:, None] & m_k[None, :]
    m_in = m_kept[:, None] & m_k[None, :]
    o_out = packed(i_row, H * K, o_k)
    b_decay = load(p_decay, offsets(i_b, o_t, s_decay_b, s_decay_t, o_k), m_in)
    tl.store(p_w + o_out, tl.where(m_in, tl.sigmoid(b_decay) * -MOST_DECAY, 0), mask=m)  # (8)
    b_rate = load(p_rate, offsets(i_b, o_t, s_rate_b, s_rate_t, o_k), m_in)
    tl.store(p_a + o_out, tl.where(m_in, tl.sigmoid(b_rate), 0), mask=m)  # (9)
    b_key = load(p_key, offsets(i_b, o_t, s_key_b, s_key_t, o_k), m_in)
    if SILU:
        b_key = b_key * tl.sigmoid(b_key)
    b_kappa = b_key * load(p_k_k, o_k, m_k)[None, :]  # (11)
    b_norm = tl.maximum(tl.sqrt(tl.sum(b_kappa * b_kappa, 1)), TINY)
    tl.store(p_kappa + o_out, b_kappa / b_norm[:, None], mask=m)
    b_k_a = load(p_k_a, o_k, m_k)[None, :]
    tl.store(p_k + o_out, b_key * (1 - tl.sigmoid(-b_rate) * b_k_a), mask=m)

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


# A token and a head, K = V = 64, 16 bits in: 768 bytes in and out of decay, rate and key, 1,024 for the gradients of
# the four float32 outputs, and 512 / BT for those of k_k and k_a; with a value residual 896 more.
@triton.jit
def writes_backward(
    p_dw, p_dk, p_dv, p_dkappa, p_da, p_decay, p_rate, p_key, p_value, p_first, p_share, p_k_k, p_k_a, p_mask,
    p_ddecay, p_drate, p_dkey, p_dvalue, p_dfirst, p_dshare, p_dk_k, p_dk_a,
    s_dw_b, s_dw_t, s_dk_b, s_dk_t, s_dv_b, s_dv_t, s_dkappa_b, s_dkappa_t, s_da_b, s_da_t,
    s_decay_b, s_decay_t, s_rate_b, s_rate_t, s_key_b, s_key_t, s_value_b, s_value_t, s_first_b, s_first_t,
    s_share_b, s_share_t, s_mask_b, s_mask_t, T, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(1)
    i_b, o_t, m_t = token_block(tl.program_id(0), tl.cdiv(T, BT), T, BT)
    m_kept = kept(p_mask, i_b, o_t, m_t, s_mask_b, s_mask_t)
    i_row = i_b * T + o_t

    m_k = tl.arange(0, BK) < K
    o_k = i_h * K + tl.arange(0, BK)
    m = m_t[:, None] & m_k[None, :]
    m_in = m_kept[:, None] & m_k[None, :]
    o_out = packed(i_row, H * K, o_k)
    b_decay = load(p_decay, offsets(i_b, o_t, s_decay_b, s_decay_t, o_k), m_in)
    b_dw = load(p_dw, offsets(i_b, o_t, s_dw_b, s_dw_t, o_k), m_in)
    tl.store(p_ddecay + o_out, b_dw * tl.sigmoid(b_decay) * tl.sigmoid(-b_decay) * -MOST_DECAY, mask=m)

    b_key = load(p_key, offsets(i_b, o_t, s_key_b, s_key_t, o_k), m_in)
    b_slope = tl.full((BT, BK), 1, tl.float32)
    if SILU:
        b_slope = tl.sigmoid(b_key) * (1 + b_key * tl.sigmoid(-b_key))
        b_key = b_key * tl.sigmoid(b_key)
    b_k_k = load(p_k_k, o_k, m_k)[None, :]
    b_k_a = load(p_k_a, o_k, m_k)[None, :]
    b_dk = load(p_dk, offsets(i_b, o_t, s_dk_b, s_dk_t, o_k), m_in)
    b_rate = load(p_rate, offsets(i_b, o_t, s_rate_b, s_rate_t, o_k), m_in)
    b_rest = tl.sigmoid(-b_rate)  # 1 - a
    b_da = load(p_da, offsets(i_b, o_t, s_da_b, s_da_t, o_k), m_in) + b_dk * b_key * b_k_a
    tl.store(p_drate + o_out, b_da * tl.sigmoid(b_rate) * b_rest, mask=m)

    b_norm = tl.sqrt(tl.sum(b_key * b_k_k * (b_key * b_k_k), 1))
    b_scale = 1 / tl.maximum(b_norm, TINY)
    b_kappa = b_key * b_k_k * b_scale[:, None]
    b_dkappa = load(p_dkappa, offsets(i_b, o_t, s_dkappa_b, s_dkappa_t, o_k), m_in)
    b_along = tl.where(b_norm >= TINY, tl.sum(b_dkappa * b_kappa, 1), 0)  # a smaller norm is a constant there
    b_dz = (b_dkappa - b_kappa * b_along[:, None]) * b_scale[:, None]
    tl.store(p_dkey + o_out, (b_dk * (1 - b_rest * b_k_a) + b_dz * b_k_k) * b_slope, mask=m)
    o_part = tl.program_id(0).to(tl.int64) * H * K + o_k
    tl.store(p_dk_k + o_part, tl.sum(b_dz * b_key, 0), mask=m_k)
    tl.store(p_dk_a + o_part, -tl.sum(b_dk * b_key * b_rest, 0), mask=m_k)

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


def sizes(key: torch.Tensor, value: torch.Tensor | None, num_heads: int, feature_map: str) -> dict[str, int]:
    K = key.shape[2] // num_heads
    V = K if value is None else value.shape[2] // num_heads
    BK, BV = triton.next_power_of_2(K), triton.next_power_of_2(V)
    BT = tokens_per_block(max(BK, BV))
    return {"K": K, "V": V, "BK": BK, "BV": BV, "BT": BT, "SILU": feature_map == "silu"}


@torch.library.custom_op("crosswkv::state_writes", mutates_args=())
def state_writes(
    decay: torch.Tensor,
    rate: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    first_value: torch.Tensor | None,
    value_share: torch.Tensor | None,
    k_k: torch.Tensor,
    k_a: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """w, k, v, kappa and a, heads not yet apart: `[B, T, H * K]`, v `[B, T, H * V]` or empty if value is None."""
    outputs = empty_writes(decay, rate, key, value, first_value, value_share, k_k, k_a, mask, num_heads, feature_map)
    batch_size, length, _ = key.shape
    constants = sizes(key, value, num_heads, feature_map)
    streams = [optional_rows(x) for x in (decay, rate, key, value, first_value, value_share)]
    tensors = (*streams, k_k.contiguous(), k_a.contiguous(), mask, *outputs)
    grid = (batch_size * triton.cdiv(length, constants["BT"]), num_heads)
    strides = row_strides(*streams, mask)
    launch(writes_forward, grid, *tensors, *strides, length, num_heads, num_warps=4, **constants)
    return outputs


@state_writes.register_fake
def empty_writes(decay, rate, key, value, first_value, value_share, k_k, k_a, mask, num_heads, feature_map):
    w, k, kappa, a = (key.new_empty(key.shape, dtype=torch.float32) for _ in range(4))
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
    k_k: torch.Tensor,
    k_a: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    feature_map: str,
) -> list[torch.Tensor]:
    """Gradients of decay, rate, key, value, first_value, value_share, k_k and k_a; empty for what is None."""
    inputs = (decay, rate, key, value, first_value, value_share, k_k, k_a)
    gradients = [empty_gradient(x, key) for x in inputs]
    batch_size, length, _ = key.shape
    constants = sizes(key, value, num_heads, feature_map)
    num_blocks = batch_size * triton.cdiv(length, constants["BT"])
    parts = [x.new_empty(num_blocks, *x.shape, dtype=torch.float32) for x in (k_k, k_a)]
    cotangents = [optional_rows(x) for x in (dw, dk, dv, dkappa, da)]
    streams = [optional_rows(x) for x in inputs[:6]]
    tensors = (*cotangents, *streams, k_k.contiguous(), k_a.contiguous(), mask, *gradients[:6], *parts)
    strides = row_strides(*cotangents, *streams, mask)
    launch(writes_backward, (num_blocks, num_heads), *tensors, *strides, length, num_heads, num_warps=8, **constants)
    return [*gradients[:6], *sum_parts(parts, (k_k, k_a))]


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
