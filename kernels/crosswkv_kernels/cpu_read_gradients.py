"""What a CPU reads from a state through products of channels where gradients are needed, block by block.

Only the arguments are kept, and no product of a token outlives its block. With the products P of a token's channels,
their mean square m, and the state S whose columns have the factors of the products in them and which is centred where
there is a norm, a token reads

    o = S P / m        z = o / sqrt(mean(o^2) + eps)        y = weight z + bias

and from dy, with dz = weight dy, c = mean(dz z) and the V values of a head,

    do = (dz - c z) / sqrt(mean(o^2) + eps)        dP = S^T do / m        dS = sum_t do P^T / m
    dm = -sum_V(do o) / m                          sum_V(do o) = V c eps / (mean(o^2) + eps)
"""

from typing import NamedTuple

import torch

from .channel_features import gradient_of_products
from .cpu_read import (
    blocks_of,
    empty_heads,
    factors_of_columns,
    fill_circle,
    multiply_neighbours,
    part_of,
    read_state,
    sequences_and_tokens,
    states_of_products,
)
from .derivable import derivable_gradients
from .feature_maps import MEAN_SQUARE_EPS, PRODUCTS, QUADRATIC
from .plain_read import read_plainly
from .reference import compute_dtype, exact

WELL_TRANSPOSED = 60 * 60  # numbers of a matrix from which on PyTorch transposes it block by block
CHANNELS_AT_ONCE = 2**17  # of 2**15 to 2**20 the fastest, or nearly, with one thread and with two


class ReadState(torch.autograd.Function):
    """`[B, T, H * V]` from `r`, `state`, the norm's weight and bias, or None twice, and `eps`."""

    @staticmethod
    def forward(ctx, r, state, norm_weight, norm_bias, eps):
        ctx.save_for_backward(r, state, norm_weight, norm_bias)
        ctx.eps = eps
        dtype = compute_dtype(r, state)
        return read_state(r.to(dtype), state.to(dtype), norm_weight, norm_bias, eps, QUADRATIC, overwrite_r=False)

    @staticmethod
    def backward(ctx, d_output):
        tensors = ctx.saved_tensors
        with exact(d_output.device):  # a backward may be called under autocast too
            if torch.is_grad_enabled():  # this gradient shall have one itself
                needed = ctx.needs_input_grad[:-1]
                found = derivable_gradients(lambda *x: read_plainly(*x, ctx.eps, QUADRATIC), tensors, needed, d_output)
            else:
                found = gradients_of_read(*tensors, ctx.eps, d_output)
        return *(None if d is None else d.to(x.dtype) for x, d in zip(tensors, found, strict=True)), None


class Scratch(NamedTuple):
    """Memory that all blocks use in turn, for up to G = B * H heads and C tokens."""

    channels: torch.Tensor  # [B, H * n, C]
    d_outputs: torch.Tensor  # [B, H * V, C]
    circle: torch.Tensor  # [G, n + 3, C]
    products: torch.Tensor  # [G, 4 n, C]
    d_products: torch.Tensor
    reads: torch.Tensor  # [G, V, C]
    of_reads: torch.Tensor


def gradients_of_read(
    r: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    d_output: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Of the first four arguments, in the dtype of `d_output`."""
    (batch_size, num_heads, value_dim, _), (_, length, _, n) = state.shape, r.shape
    centred = norm_weight is not None
    states = states_of_products(state.to(d_output.dtype), n, centred)
    d_states = torch.zeros_like(states)
    d_channels = empty_heads(d_output, num_heads, n)  # [B, H, n, T]
    norm = None if norm_weight is None else Norm.of(norm_weight.to(d_output.dtype), num_heads, eps)
    of_norm = (None, None) if norm is None else (norm.d_weight.flatten(), norm.d_bias.flatten())
    if d_output.numel() == 0:
        return d_channels.permute(0, 3, 1, 2), d_states, *of_norm
    sequences, size = sequences_and_tokens(batch_size, num_heads * n, length, CHANNELS_AT_ONCE)
    scratch = make_scratch(d_output, sequences, size, num_heads, n, value_dim)
    for rows, tokens in blocks_of(batch_size, length, sequences, size):
        channels = tokens_last(r[rows, tokens].flatten(2), scratch.channels).unflatten(1, (num_heads, n))
        dy = tokens_last(d_output[rows, tokens], scratch.d_outputs).unflatten(1, (num_heads, value_dim))
        of_states = states[rows].flatten(0, 1), d_states[rows].flatten(0, 1)
        d_channels[rows, ..., tokens] = gradients_of_block(channels, *of_states, norm, dy, scratch)
    if centred:
        d_states -= d_states.mean(2, keepdim=True)
    d_states *= factors_of_columns(d_states, n)
    return d_channels.permute(0, 3, 1, 2), d_states, *of_norm


def gradients_of_block(
    channels: torch.Tensor,
    states: torch.Tensor,
    d_states: torch.Tensor,
    norm: "Norm | None",
    dy: torch.Tensor,
    scratch: Scratch,
) -> torch.Tensor:
    """Of the channels `[B, H, n, C]`; what `states` `[G, V, 4 n]` get is added to `d_states`. `dy` is lost."""
    n = channels.shape[2]
    circle, products, d_products, o, of_reads = (x[part_of(x, channels)] for x in scratch[2:])
    fill_circle(circle.unflatten(0, channels.shape[:2]), channels)
    multiply_neighbours(circle, products.unflatten(1, (PRODUCTS, n)))
    torch.bmm(states, products, out=o)
    inverse = products[:, :n].sum(1, keepdim=True).add_(n * MEAN_SQUARE_EPS).reciprocal_().mul_(n)  # 1 / m
    o *= inverse
    d_o = dy.flatten(0, 1)
    along = dot(d_o, o, of_reads) if norm is None else norm.pass_back(o, dy, of_reads)
    d_o *= inverse
    d_states.baddbmm_(d_o, products.mT)
    torch.bmm(states.mT, d_o, out=d_products)
    d_products[:, :n] -= along.mul_(inverse).div_(n)  # m is the mean of the first n products
    return gradient_of_products(d_products.unflatten(1, (PRODUCTS, n)), circle, 1, 1).view_as(channels)


class Norm(NamedTuple):
    """A norm per head, and the gradients of its weight and bias so far; `[H, V, 1]` each."""

    weight: torch.Tensor
    d_weight: torch.Tensor
    d_bias: torch.Tensor
    eps: float

    @staticmethod
    def of(weight: torch.Tensor, num_heads: int, eps: float) -> "Norm":
        weight = weight.view(num_heads, -1, 1)
        return Norm(weight, torch.zeros_like(weight), torch.zeros_like(weight), eps)

    def pass_back(self, o: torch.Tensor, dy: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """From centred reads `[G, V, C]` and `dy` `[B, H, V, C]`, which becomes that of the reads: `sum_V(do o)`.

        The reads are lost.
        """
        d_z, value_dim = dy.flatten(0, 1), o.shape[1]
        scale = dot(o, o, scratch).div_(value_dim).add_(self.eps).rsqrt_()
        z = o.mul_(scale)
        self.d_bias.add_(dy.sum((0, 3)).unsqueeze(-1))
        self.d_weight.add_(torch.mul(d_z, z, out=scratch).view_as(dy).sum((0, 3)).unsqueeze(-1))
        dy *= self.weight
        c = dot(d_z, z, scratch).div_(value_dim)
        d_z.addcmul_(z, c, value=-1).mul_(scale)
        return c.mul_(scale.square_()).mul_(value_dim * self.eps)


def dot(x: torch.Tensor, y: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Over the values of a head: `[G, V, C]` to `[G, 1, C]`."""
    return torch.mul(x, y, out=scratch).sum(1, keepdim=True)


def make_scratch(x: torch.Tensor, sequences: int, size: int, num_heads: int, n: int, value_dim: int) -> Scratch:
    heads = sequences * num_heads
    reads = (heads, value_dim, size)
    products = (heads, PRODUCTS * n, size)
    shapes = (
        (sequences, num_heads * n, size),
        (sequences, num_heads * value_dim, size),
        (heads, n + PRODUCTS - 1, size),
        products,
        products,
        reads,
        reads,
    )
    return Scratch(*(x.new_empty(shape) for shape in shapes))


def tokens_last(block: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """`[B, C, D]` to `[B, D, C]` in `scratch`."""
    result = scratch[: block.shape[0], :, : block.shape[1]]
    if block[0].numel() < WELL_TRANSPOSED:
        return result.copy_(block.mT)
    for matrix, sequence in zip(result, block, strict=True):
        matrix.copy_(sequence.T)
    return result
