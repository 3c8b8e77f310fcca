"""What keys and receptances pass through, head by head, before they meet in a state; in plain PyTorch."""

import torch
import torch.nn.functional as F

QUADRATIC = "quadratic"
FEATURE_MAPS = ("identity", "silu", QUADRATIC)
PRODUCTS = 4  # features per channel with `quadratic`
SMALLEST_NORM = 1e-12  # of features: where a key has norm 1, smaller ones count as it
MEAN_SQUARE_EPS = 1e-4  # added to channels' mean square: where all are zero, as in masked tokens, so are features


def check_feature_map(feature_map: str) -> None:
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"`feature_map` must be one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}.")


def number_of_features(feature_map: str, channels: int) -> int:
    """K, from the channels of a head."""
    return PRODUCTS * channels if feature_map == QUADRATIC else channels


def map_features(x: torch.Tensor, feature_map: str) -> torch.Tensor:
    """Features of each head's channels: floating point `[..., n]` to `[..., K]`, in the dtype of `x`.

    `quadratic` makes K = 4 n products, of each channel with itself and the next three, in a circle: the feature
    `j * n + i` is `x[i] * x[(i + j) % n] / m`, times `n**-0.5`, and `sqrt(2)` where j > 0; m is the mean square of the
    channels, plus `MEAN_SQUARE_EPS`. They are a part of the monomials of degree two (with fewer than seven channels
    some occur twice). With all of them once, as in symmetric power transformers (Buckman, Gelada and Zhang, 2024;
    arXiv:2503.03269), the product of two tokens' features would be `n` times the squared cosine between their
    channels. Weak matches then count for little, as under softmax's exponential, and a state holds on to its facts
    among many tokens that nobody asks for.

    Differentiable any number of times by `torch.autograd`; `torch.func` does not take it.

    Raises:
        ValueError: an unknown `feature_map`.
    """
    check_feature_map(feature_map)
    if feature_map == "identity":
        return x
    if feature_map == "silu":
        return F.silu(x)
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))  # each product rounded once
    if torch.compiler.is_compiling():
        return (circle(x) * ((x / mean_square(x)).unsqueeze(-2) * factors_like(x))).flatten(-2).to(dtype)
    return Quadratic.apply(x).to(dtype)  # type: ignore[no-any-return]


class Quadratic(torch.autograd.Function):
    """With a backward that keeps the channels, not their products; it can be differentiated in turn."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        partners, factors, scaled = circle(x), factors_like(x), x / mean_square(x)
        result = x.new_empty(partners.shape)
        torch.mul(partners[..., :1, :], (scaled * factors[0]).unsqueeze(-2), out=result[..., :1, :])
        torch.mul(partners[..., 1:, :], (scaled * factors[1]).unsqueeze(-2), out=result[..., 1:, :])
        return result.flatten(-2)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        m = mean_square(x)
        gradient = gradient.unflatten(-1, (PRODUCTS, x.shape[-1])) * (factors_like(x) / m.unsqueeze(-1))
        result = (gradient * circle(x)).sum(-2)
        d_m = -(result * x).sum(-1, keepdim=True) / m
        for j, part in enumerate((gradient * x.unsqueeze(-2)).unbind(-2)):
            result = result + part.roll(j, -1)
        return result + x * (d_m * (2 / x.shape[-1]))


def mean_square(x: torch.Tensor) -> torch.Tensor:
    """`[..., n]` to `[..., 1]`."""
    return x.square().mean(-1, keepdim=True) + MEAN_SQUARE_EPS


def circle(x: torch.Tensor) -> torch.Tensor:
    """`[..., n]` to `[..., 4, n]`: the channel that stands `j` places behind each one, for j = 0 to 3."""
    n = int(x.shape[-1])  # a trace has tensors for sizes
    rounds, rest = divmod(PRODUCTS - 1, n)
    return torch.cat((x, *[x] * rounds, x[..., :rest]), dim=-1).unfold(-1, n, 1)


def factors_like(x: torch.Tensor) -> torch.Tensor:
    """`[4, 1]`, what the products of `x` `[..., n]` are multiplied by."""
    first, others = factors_of(x.shape[-1])
    factors = x.new_full((PRODUCTS, 1), others)
    factors[0] = first
    return factors


def factors_of(n: int) -> tuple[float, float]:
    """What squares of `n` channels are multiplied by, and what their other products are."""
    return n**-0.5, (2 / n) ** 0.5
