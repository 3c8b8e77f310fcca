"""What receptances and keys pass through, head by head, before they meet in the state."""

import torch
import torch.nn.functional as F
from crosswkv_kernels import FEATURE_MAPS

QUADRATIC = "quadratic"
NAMES = (*FEATURE_MAPS, QUADRATIC)
PRODUCTS = 4  # features per channel with `quadratic`


def channels_per_head(feature_map: str, head_dim: int) -> int:
    """How many projected channels become the K = `head_dim` features of a head.

    Raises:
        ValueError: `head_dim` does not divide.
    """
    if feature_map != QUADRATIC:
        return head_dim
    if head_dim % PRODUCTS:
        raise ValueError(
            f"`head_dim` must be a multiple of {PRODUCTS} with `feature_map='quadratic'`, which makes {PRODUCTS} "
            f"features of every channel, got {head_dim}; {max(head_dim // PRODUCTS, 1) * PRODUCTS} would do."
        )
    return head_dim // PRODUCTS


def features(feature_map: str, x: torch.Tensor) -> torch.Tensor:
    """`[..., H, channels]` to `[..., H, K]`; without gradients `x` may be overwritten."""
    if feature_map == QUADRATIC:
        return quadratic(x)
    if feature_map == "silu":
        return F.silu(x, inplace=not torch.is_grad_enabled())  # a pass over memory less
    return x


def quadratic(x: torch.Tensor) -> torch.Tensor:
    """Products of each of `n` channels with itself and the next ones, in a circle: `[..., n]` to `[..., 4 n]`.

    A part of the monomials of degree two. With all of them, as in symmetric power transformers (Buckman, Gelada and
    Zhang, 2024; arXiv:2503.03269), the product of two tokens' features would be the square of their channels' product,
    divided by `sqrt(n)`. Weak matches then count for little, as under softmax's exponential, and a state holds on to
    its facts among many tokens that nobody asks for.
    """
    n, dtype = x.shape[-1], x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))  # each product rounded once
    circle = in_circle(x, dim=-1)
    square, root = n**-0.25, 2**0.5 * n**-0.25
    parts = [x * circle[..., j : j + n] * (root if j else square) for j in range(PRODUCTS)]
    return torch.cat(parts, dim=-1).to(dtype)


def in_circle(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The `n` channels of dimension `dim`, and behind the last one again as many as a product reaches beyond it."""
    rounds, rest = divmod(PRODUCTS - 1, x.shape[dim])
    return torch.cat((x, *[x] * rounds, x.narrow(dim, 0, rest)), dim)
