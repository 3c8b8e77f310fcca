"""How a CPU projects what will read a state, where no gradient is needed."""

import torch
from torch import nn


def project_tokens_last(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`linear(x)` for `[B, T, D]`; where that is a product with a weight alone, tokens are last in memory.

    On a CPU products of channels go along tokens: this saves them a copy.
    """
    of_cpu = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if of_cpu and is_plain(linear):
        product = torch.mm(linear.weight, x.flatten(0, 1).T)  # type: ignore[arg-type]
        return product.unflatten(1, x.shape[:2]).permute(1, 2, 0)
    return linear(x)  # type: ignore[no-any-return]


def is_plain(module: nn.Module) -> bool:
    """A linear layer without bias, adapters, hooks of its own, another `forward`, or a quantized weight."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or module.bias is not None:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
