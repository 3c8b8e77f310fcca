"""Which optimizer trains which parameter."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

ADAM_BETAS = (0.9, 0.99)
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
OPTIMIZERS = ("adamw", "muon")


def make_optimizer(
    name: str, models: Iterable[nn.Module], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Decays the weights of linear layers, convolutions and embeddings, and nothing else.

    `adamw` is PyTorch's. `muon` takes [`Muon`] for linear layers, and AdamW for the rest. (Convolutions, flattened to
    matrices, did worse with Muon than with AdamW in the one run that was made.)
    """
    models = list(models)
    modules = [module for model in models for module in model.modules()]
    matrices = {id(m.weight) for m in modules if isinstance(m, nn.Linear)}
    decayed = {id(m.weight) for m in modules if isinstance(m, nn.Conv2d | nn.Embedding)}
    parameters = [parameter for model in models for parameter in model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": weight_decay, "matrices": True},
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in matrices | decayed], "weight_decay": 0.0},
    ]
    if name == "muon":
        return Muon(groups, learning_rate)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=ADAM_BETAS, fused=fused)


class Muon(torch.optim.Optimizer):
    """Muon for groups with `matrices=True`, AdamW for the others; one learning rate and one schedule serve both.

    Every update of a matrix is its momentum, made orthogonal by Newton-Schulz iterations (Jordan et al., 2024) and
    scaled so that it is as large as AdamW's (Liu et al., 2025, arXiv:2502.16982): `torch.optim.Muon` with
    `adjust_lr_fn="match_rms_adamw"`, iterated in float32, and with AdamW in the same optimizer.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._muon(parameter) if group["matrices"] else self._adam(parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss

    def _muon(self, parameter: torch.Tensor) -> torch.Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MUON_MOMENTUM)
        ahead = gradient.lerp(momentum, MUON_MOMENTUM)  # Nesterov
        return 0.2 * max(ahead.shape) ** 0.5 * orthogonal(ahead)

    def _adam(self, parameter: torch.Tensor) -> torch.Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        mean = state["mean"].lerp_(gradient, 1 - ADAM_BETAS[0])
        square = state["square"].lerp_(gradient.square(), 1 - ADAM_BETAS[1])
        mean_bias, square_bias = (1 - beta ** state["step"].item() for beta in ADAM_BETAS)
        return (mean / mean_bias) / ((square / square_bias).sqrt() + 1e-8)


def orthogonal(x: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """A matrix with the singular vectors of `x` `[m, n]` and singular values near 1 (between about 0.7 and 1.2)."""
    a, b, c = NEWTON_SCHULZ
    turned = x.shape[0] > x.shape[1]
    y = x.float().mT if turned else x.float()
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if turned else y).to(x.dtype)
