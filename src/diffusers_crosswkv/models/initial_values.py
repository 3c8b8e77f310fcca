"""Where the parameters start, one tensor per function: as in RWKV-7 (RWKV-LM, x070) where not said otherwise.

`position` is the layer's place in its network, 0 for the first to 1 for the last.
"""

import torch


def channel_ramp(width: int) -> torch.Tensor:
    """-0.5 at the first channel to 0.5 at the last."""
    return torch.linspace(-0.5, 0.5, width)


def head_zigzag(width: int, head_dim: int) -> torch.Tensor:
    """-1 to 1 inside every head, quadratic: neighbours in a head start different (RWKV-LM, x070)."""
    end = 1 if head_dim > 1 else 0
    x = torch.linspace(-end, end, head_dim)  # where `linspace` escapes a device context, all values here do
    return (x * x.abs()).repeat(width // head_dim)


def initial_decay(width: int, head_dim: int, position: float) -> torch.Tensor:
    """Bias of the log decay before its sigmoid: from channels that keep nearly all to channels that forget fast."""
    ramp = torch.linspace(0, 1, width) ** (1 + position**0.3)
    return -5.5 + 6 * ramp + 2.5 * head_zigzag(width, head_dim)


def initial_text_decay(width: int) -> torch.Tensor:
    """As `initial_decay`, but all channels keep nearly all: only the last state of a text is read, not each one."""
    return torch.linspace(-9, -5, width)


def initial_mix(width: int, position: float) -> torch.Tensor:
    """`mu` of w, k, v, a and g: early channels look back, late ones do not, deeper layers less (RWKV-LM, x070)."""
    channel = torch.arange(width) / width
    return torch.stack([1 - channel ** (power * (1 - position)) for power in (0.9, 0.7, 0.7, 0.9, 0.2)])


def initial_text_mix(width: int) -> torch.Tensor:
    """`mu` of w, k, v and a of a text: none looks back, for a text encoder has mixed its tokens already."""
    return torch.zeros(4, width)


def initial_value_share(width: int) -> torch.Tensor:
    """How much of the first layer's value goes into a later one (equation 10), before the sigmoid: two thirds."""
    return 0.73 - 0.4 * channel_ramp(width)


def initial_text_value_share(width: int) -> torch.Tensor:
    """As `initial_value_share`, but a twentieth: every layer begins with values of its own, as in cross-attention."""
    return torch.full((width,), -3.0)
