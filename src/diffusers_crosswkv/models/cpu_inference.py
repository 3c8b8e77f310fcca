"""How a CPU projects what will read a state, where no gradient is needed."""

from typing import TypeGuard

import torch
from crosswkv_kernels.cpu_read import can_read, empty_tokens_last
from torch import nn


def project_tokens_last(linear: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """`linear(x)` for `[B, T, D]` with tokens last in memory; None where `linear` must be called.

    On a CPU products of channels go along tokens: this saves them a copy, and the result is the caller's alone.
    """
    if not is_plain(linear) or not can_read(x, linear.weight) or torch.is_autocast_enabled("cpu"):
        return None
    channels = empty_tokens_last(x, linear.out_features)
    torch.mm(linear.weight, x.flatten(0, 1).T, out=channels.flatten(1))
    return channels.permute(1, 2, 0)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear layer without bias, adapters, hooks of its own, another `forward`, or a quantized weight."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or module.bias is not None:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
