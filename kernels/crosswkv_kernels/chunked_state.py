"""The state alone in chunks, with a backward of its own: what training on a CPU scans a text with.

The algebra is that of `chunked.py`. By hand it needs a fraction of the time and memory of autograd's backward: only
the arguments and a state every `TILE_SIZE` tokens are kept, tokens and heads are taken a few at a time, which keeps
what is in between small, and the triangular systems are solved once, for the identity.

With `X = (I + L)^-1`, `W = X A`, `Y = X M V` and all factors relative to mid-chunk, a chunk does

    S_0 = S e^middle        U = Y + W S_0^T        S_next = (S_0 + V^T K - U^T B) e^(c_last - middle)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from . import chunked_channels, chunked_multiples
from .chunk_factors import drop_subnormal, unit_inverse
from .chunked import wkv7_chunked
from .derivable import derivable_gradients
from .elementwise import ChannelWrite, Write, are_multiples
from .reference import compute_dtype, exact, whole_keys

STATE_CHUNK_SIZE = 32  # of 16 to 64 the fastest: larger ones spend more on triangles, smaller ones on their number
TILE_SIZE = 256  # at most: the shorter a tile, the more heads pass together, and the fewer calls that takes
TOKENS_AT_ONCE = 16384  # of all sequences and heads together, on a CPU: of 4096 to 32768 the fastest or nearly


def final_state_chunked(write: Write, initial_state: torch.Tensor | None = None) -> torch.Tensor:
    """The state `[B, H, V, K]` of [`wkv7`] without receptance; as many derivatives as one likes."""
    if not are_multiples(write.w, write.k, write.kappa, write.a) and write.k.shape != write.kappa.shape:
        dtype = compute_dtype(*write, initial_state)
        write = write._replace(k=whole_keys(write.k.to(dtype), write.kappa.to(dtype)))
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*write, initial_state))):
        return scan_tiles(write, initial_state, keep=False)[0]
    return FinalState.apply(*write, initial_state, type(write))  # type: ignore[no-any-return]


def scan_tiles(write: Write, initial_state: torch.Tensor | None, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The state and, if they shall be kept, those before each tile."""
    dtype, algebra = compute_dtype(*write, initial_state), algebra_of(write)
    batch_size, length, num_heads, value_dim = write.v.shape
    state = write.v.new_empty(batch_size, num_heads, value_dim, write.head_dim, dtype=dtype)
    tiles, blocks = tiles_and_blocks(write.kappa)
    chunk_size = length if length <= algebra.single_chunk_size else STATE_CHUNK_SIZE
    starts = state.new_empty(len(tiles) if keep else 0, *state.shape)
    for heads in blocks:
        passing = None if initial_state is None else initial_state[:, heads].to(dtype).flatten(0, 1)
        for i, tokens in enumerate(tiles):
            if keep:
                starts[i, :, heads] = 0 if passing is None else passing.view_as(starts[i, :, heads])
            passing = algebra.last_state(chunks_of(write, tokens, heads, dtype, chunk_size), passing)
        assert passing is not None
        state[:, heads] = passing.view_as(state[:, heads])
    return state, starts


class FinalState(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, k, v, kappa, a, initial_state, kind):
        state, starts = scan_tiles(kind(w, k, v, kappa, a), initial_state, keep=True)
        ctx.kind = kind
        ctx.save_for_backward(w, k, v, kappa, a, initial_state, starts)
        return state

    @staticmethod
    def backward(ctx, d_state):
        *tensors, initial_state, starts = ctx.saved_tensors
        write = ctx.kind(*tensors)
        with exact(d_state.device):  # a backward may be called under autocast too
            if torch.is_grad_enabled():  # this gradient shall have one itself
                inputs, needed = (*tensors, initial_state), ctx.needs_input_grad[:-1]
                return *derivable_gradients(partial(plain_state, ctx.kind), inputs, needed, d_state), None
            *gradients, d_start = gradients_of_tiles(write, starts, d_state)
        return *gradients, None if initial_state is None else d_start.to(initial_state.dtype), None


def plain_state(kind: type[Write], *tensors: torch.Tensor | None) -> torch.Tensor:
    """From the write's tensors and the initial state."""
    *write, initial_state = tensors
    _, state = wkv7_chunked(None, *kind(*write).mapped(), initial_state=initial_state)  # type: ignore[arg-type]
    assert state is not None
    return state


def gradients_of_tiles(write: Write, starts: torch.Tensor, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the write's tensors and of the state before the first tile; `starts` are those before each of them."""
    algebra = algebra_of(write)
    gradients = [x.new_empty(x.shape) for x in write]
    d_start = torch.empty_like(d_state)
    tiles, blocks = tiles_and_blocks(write.kappa)
    for heads in blocks:
        d_passing = d_state[:, heads].flatten(0, 1)
        for start, tokens in zip(starts.unbind()[::-1], reversed(tiles), strict=True):
            part = chunks_of(write, tokens, heads, d_state.dtype, STATE_CHUNK_SIZE)
            passed = algebra.pass_chunks(part, start[:, heads].flatten(0, 1))
            *parts, d_passing = algebra.gradients_of_chunks(part, passed, d_passing)
            for gradient, of_chunks in zip(gradients, parts, strict=True):
                put_chunks(gradient[:, tokens, heads], of_chunks)
        d_start[:, heads] = d_passing.view_as(d_start[:, heads])
    return *gradients, d_start


class Algebra(NamedTuple):
    """How a tile is passed, and its gradients."""

    last_state: Callable[[Any, torch.Tensor | None], torch.Tensor]
    pass_chunks: Callable[[Any, torch.Tensor], Any]
    gradients_of_chunks: Callable[[Any, Any, torch.Tensor], tuple[torch.Tensor, ...]]
    single_chunk_size: int  # tokens of a text that forward is one chunk: to pass a state on would take longer


def algebra_of(write: Write) -> Algebra:
    if isinstance(write, ChannelWrite):
        return Algebra(
            chunked_channels.last_state,
            chunked_channels.pass_chunks,
            chunked_channels.gradients_of_chunks,
            chunked_multiples.SINGLE_CHUNK_SIZE,
        )
    if are_multiples(write.w, write.k, write.kappa, write.a):
        return Algebra(
            chunked_multiples.last_state,
            chunked_multiples.pass_chunks,
            chunked_multiples.gradients_of_chunks,
            chunked_multiples.SINGLE_CHUNK_SIZE,
        )
    return Algebra(last_state, pass_chunks, gradients_of_chunks, STATE_CHUNK_SIZE)


def tiles_and_blocks(kappa: torch.Tensor) -> tuple[list[slice], list[slice]]:
    """Tokens and heads that are taken at a time: on a CPU as many as make calls worth their overhead, and few more."""
    batch_size, length, heads, _ = kappa.shape
    if kappa.device.type != "cpu":
        return [slice(length)], [slice(heads)]
    size = -(-length // -(-length // TILE_SIZE))
    step = max(1, TOKENS_AT_ONCE // max(1, batch_size * size))
    return [slice(i, i + size) for i in range(0, length, size)], [slice(i, i + step) for i in range(0, heads, step)]


def chunks_of(write: Write, tokens: slice, heads: slice, dtype: torch.dtype, chunk_size: int) -> Write:
    return type(write)(*(in_chunks(x[:, tokens, heads], dtype, chunk_size) for x in write))


def in_chunks(x: torch.Tensor, dtype: torch.dtype, chunk_size: int) -> torch.Tensor:
    """`[B, T, H, D]` to `[N, B * H, C, D]`; chunks are of equal length, padding tokens change nothing."""
    batch_size, length, heads, width = x.shape
    count = -(-length // chunk_size)
    size = -(-length // count)
    if count * size > length:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, count * size - length))
    x = x.unflatten(1, (count, size)).permute(1, 0, 3, 2, 4)  # [N, B, H, C, D]
    return x.to(dtype, memory_format=torch.contiguous_format, copy=True).view(count, batch_size * heads, size, width)


def put_chunks(target: torch.Tensor, chunks: torch.Tensor) -> None:
    """The way back, into `[B, T, H, D]`."""
    batch_size, length, heads, width = target.shape
    count, _, size, _ = chunks.shape
    x = chunks.view(count, batch_size, heads, size, width).permute(1, 0, 3, 2, 4)
    target.copy_(x.reshape(batch_size, count * size, heads, width)[:, :length])


class Decays(NamedTuple):
    """Of tokens in chunks, with c the running sum of log decays and all relative to that at mid-chunk."""

    before: torch.Tensor  # e^(c_(t-1) - middle), [N, G, C, K or 1]
    after: torch.Tensor  # e^(c_t - middle)
    inverse: torch.Tensor  # e^(middle - c_t)
    enter: torch.Tensor  # e^middle, [N, G, 1, K or 1]
    leave: torch.Tensor  # e^(c_last - middle)


def decays_of(w: torch.Tensor) -> Decays:
    """From log decays `[N, G, C, K]`, or `[N, G, C, 1]` where a head has one."""
    c = w.cumsum(2)
    middle = c[:, :, w.shape[2] // 2, None]
    after = (c - middle).exp_()
    before = torch.cat(((-middle).exp(), after[:, :, :-1]), 2)
    return Decays(before, after, after.reciprocal(), middle.exp(), after[:, :, -1:])


class Passed(NamedTuple):
    """What a scan over chunks leaves for its backward, `[N, G, ...]` each with G = B * H.

    The first three are as wide as `w`: K, or 1.
    """

    before: torch.Tensor  # e^(c_(t-1) - middle), [N, G, C, K]
    after: torch.Tensor  # e^(c_t - middle)
    inverse: torch.Tensor  # e^(middle - c_t)
    A: torch.Tensor
    B: torch.Tensor
    K: torch.Tensor
    M: torch.Tensor  # [N, G, C, C]
    X: torch.Tensor
    W: torch.Tensor  # [N, G, C, K]
    U: torch.Tensor  # [N, G, C, V]
    starts: torch.Tensor  # S_0, [N, G, V, K]
    ends: torch.Tensor  # S_next


def last_state(write: Write, state: torch.Tensor | None) -> torch.Tensor:
    """Behind the last chunk, from what was before the first, `[G, V, K]`, or from zeros."""
    _, _, v, kappa, _ = write
    before = v.new_zeros(v.shape[1], v.shape[3], kappa.shape[3]) if state is None else state
    return pass_chunks(write, before).ends[-1]


def pass_chunks(write: Write, state: torch.Tensor) -> Passed:
    """Batched over chunks; only the state `[G, V, K]` goes through them one by one."""
    w, k, v, kappa, a = write
    before, after, inverse, enter, leave = decays_of(w)
    A, B, K = kappa * before, (kappa * a).mul_(inverse), k * inverse
    M = (A @ K.mT).tril_(-1)
    X = unit_inverse(A @ B.mT)
    W, U, ends = X @ A, X @ (M @ v), v.mT @ K
    starts = torch.empty_like(ends)
    in_order = (x.unbind() for x in (starts, ends, enter, leave, U, W, B))
    for start, end, enter_i, leave_i, U_i, W_i, B_i in zip(*in_order, strict=True):
        torch.mul(state, enter_i, out=start)
        U_i.baddbmm_(W_i, start.mT)
        state = end.add_(start).baddbmm_(U_i.mT, B_i, alpha=-1).mul_(leave_i)
    return Passed(before, after, inverse, A, B, K, M, X, W, U, starts, ends)


def gradients_of_chunks(write: Write, passed: Passed, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of w, k, v, kappa and a in chunks, and of the state `[G, V, K]` before the first chunk."""
    before, after, inverse, A, B, K, M, X, W, U, starts, ends = passed
    enter, leave = before[:, :, :1].reciprocal(), after[:, :, -1:]
    d_written, P = torch.empty_like(starts), torch.empty_like(U)
    in_reverse = (x.unbind()[::-1] for x in (d_written, P, enter, leave, B, W))
    for d_written_i, P_i, enter_i, leave_i, B_i, W_i in zip(*in_reverse, strict=True):
        torch.mul(d_state, leave_i, out=d_written_i)
        torch.bmm(B_i, d_written_i.mT, out=P_i)  # -dU
        d_state = drop_subnormal(torch.baddbmm(d_written_i, P_i.mT, W_i, alpha=-1).mul_(enter_i))
    d_last = as_wide_as(write.w, (d_written * ends).sum(-2, keepdim=True)) / leave
    d_right = (X.mT @ P).neg_()  # of A S_0^T + M V
    d_L, d_M = (d_right @ U.mT).neg_().tril_(-1), (d_right @ write.v.mT).tril_(-1)
    d_v = K @ d_written.mT + M.mT @ d_right
    d_K = write.v @ d_written + d_M.mT @ A
    d_B = d_L.mT @ A - U @ d_written
    d_A = d_right @ starts + d_L @ B + d_M @ K
    d_before = as_wide_as(write.w, d_A * A)
    d_c = d_before - as_wide_as(write.w, d_B * B + d_K * K)
    d_c[:, :, -1:] += d_last
    d_w = sum_from_behind(d_c).sub_(d_before)
    d_B.mul_(inverse)
    d_kappa = d_A.mul_(before).addcmul_(d_B, write.a)
    d_a = as_wide_as(write.a, d_B.mul_(write.kappa))
    return d_w, d_K.mul_(inverse), d_v, d_kappa, d_a, d_state


def sum_from_behind(d_c: torch.Tensor) -> torch.Tensor:
    """The gradient of what `c` is the running sum of, from that of `c`."""
    return d_c.flip(2).cumsum(2).flip(2)


def as_wide_as(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `x`, which may be one number for all channels of a head."""
    return gradient if x.shape[-1] == gradient.shape[-1] else gradient.sum(-1, keepdim=True)
