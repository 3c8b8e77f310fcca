"""What the elementwise Triton kernels share: a tensor is `[B, T, channels]` with any batch and token stride."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl


def rows(x: torch.Tensor) -> torch.Tensor:
    """`[B, T, ...]` as `[B, T, channels]` with adjacent channels; copies only if they are not adjacent already."""
    x = x.flatten(2)
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def optional_rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else rows(x)


def optional_contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


def row_strides(*tensors: torch.Tensor | None) -> Sequence[int]:
    """Batch and token stride of each, zeros for None."""
    return [stride for x in tensors for stride in ((0, 0) if x is None else x.stride()[:2])]


def tokens_per_block(width: int) -> int:
    """Tokens of a program whose block is this wide: 2,048 numbers, 16 in each thread of four warps."""
    return max(2048 // width, 16)


def empty_gradient(x: torch.Tensor | None, device_of: torch.Tensor) -> torch.Tensor:
    """To be written; operators cannot return None, so the gradient of an argument that is None has no elements."""
    return device_of.new_empty(0) if x is None else x.new_empty(x.shape)


def given(gradients: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """None again where the input is None."""
    return [None if x is None else gradient for x, gradient in zip(inputs, gradients, strict=True)]


def sum_parts(parts: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of parameters from what each program has summed, in an order that does not change."""
    return [part.sum(0).view_as(x).to(x.dtype) for part, x in zip(parts, inputs, strict=True)]


@triton.jit
def token_block(i_block, n_blocks, T, BT: tl.constexpr):
    """Batch element, tokens and their mask, of block `i_block` of the B * n_blocks; 64 bits, as offsets need them."""
    i_b = i_block // n_blocks
    o_t = (i_block % n_blocks) * BT + tl.arange(0, BT)
    return i_b.to(tl.int64), o_t.to(tl.int64), o_t < T


@triton.jit
def offsets(i_b, o_t, s_b, s_t, o_d):
    return (i_b * s_b + o_t * s_t)[:, None] + o_d[None, :]


@triton.jit
def packed(i_row, width, o_d):
    """Offsets of rows that lie one behind another, `i_row` of 64 bits."""
    return i_row[:, None] * width + o_d[None, :]


@triton.jit
def load(p_x, o_x, m_x):
    """As float32, 0 outside the mask."""
    return tl.load(p_x + o_x, mask=m_x, other=0).to(tl.float32)


@triton.jit
def normalize(b_x, m_d, D, eps):
    """Rows of mean 0 and variance 1, and what they were divided by, inverted; `b_x` is 0 outside the mask."""
    b_x = tl.where(m_d[None, :], b_x - (tl.sum(b_x, 1) / D)[:, None], 0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps)
    return b_x * b_rstd[:, None], b_rstd


@triton.jit
def normalize_backward(b_dx, b_x, b_rstd, D):
    """From the gradient of the normalised rows `b_x`; both are 0 outside the mask, the result is not."""
    b_mean = tl.sum(b_dx, 1) / D
    b_along = tl.sum(b_dx * b_x, 1) / D
    return b_rstd[:, None] * (b_dx - b_mean[:, None] - b_x * b_along[:, None])
