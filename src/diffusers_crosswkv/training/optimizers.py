"""Which optimizer trains which parameter, how fast, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .extras import required

if TYPE_CHECKING:
    from .config import TrainingConfig

ADAM_BETAS = (0.9, 0.99)
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "muon")
SHARDABLE = ("adamw",)  # muon needs whole matrices, prodigy sums over all parameters; 8-bit blocks were not tried
DECAYING = ("all", "attn2")  # `weights` that are decayed; adapters and states start at zero, and stay what was learned


def make_optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Trains what requires gradients; decays the weights of linear layers, convolutions and embeddings, nothing else.

    `adamw` is PyTorch's. `muon` takes [`Muon`] for linear layers, and AdamW for the rest. (Convolutions, flattened to
    matrices, did worse with Muon than with AdamW in the one run that was made.) `adamw8bit` keeps the moments of large
    parameters in 8 bits (Dettmers et al., 2021, arXiv:2110.02861); `prodigy` takes `learning_rate` times a rate which
    it finds by itself (Mishchenko and Defazio, 2023, arXiv:2306.06101).

    Raises:
        ImportError: the optimizer's package is not installed.
    """
    groups = parameter_groups(model, config.weight_decay if config.weights in DECAYING else 0.0)
    if config.optimizer == "muon":
        return Muon(groups, config.learning_rate)
    if config.optimizer == "adamw8bit":
        required("bitsandbytes", "optimizer='adamw8bit'")
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=config.learning_rate, betas=ADAM_BETAS)
    if config.optimizer == "prodigy":
        required("prodigyopt", "optimizer='prodigy'")
        from prodigyopt import Prodigy

        return Prodigy(
            groups, lr=config.learning_rate, betas=ADAM_BETAS, use_bias_correction=True, safeguard_warmup=True
        )
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAM_BETAS, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of linear layers, what else is decayed, and the rest; those of them that there are."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) in matrices], "weight_decay": weight_decay, "matrices": True},
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in matrices | decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_lr_scheduler(config: TrainingConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Diffusers' schedule, to be stepped once per optimizer step, whatever the number of processes."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def move_to_step(lr_scheduler: LRScheduler, weight_decays: Iterable[float], step: int) -> None:
    """What rates and decays are at a step follows from the settings, not from what a checkpoint has of other ones.

    Args:
        lr_scheduler: made by [`make_lr_scheduler`].
        weight_decays: of the optimizer's groups as it was made.
    """
    assert isinstance(lr_scheduler, LambdaLR)
    lr_scheduler.last_epoch = step
    groups = lr_scheduler.optimizer.param_groups
    for group, rate, factor, decay in zip(
        groups, lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, weight_decays, strict=True
    ):
        group |= {"initial_lr": rate, "lr": rate * factor(step), "weight_decay": decay}
    lr_scheduler._last_lr = [group["lr"] for group in groups]


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All that an optimizer keeps: tensors by `<parameter>.<key>`, and the rest as JSON values.

    The groups are among it (Prodigy keeps its rate there); bitsandbytes has quantization maps beside the moments.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {f"{i}.{key}": x for i, p in enumerate(parameters) for key, x in optimizer.state.get(p, {}).items()}
    tensors = {name: x for name, x in kept.items() if isinstance(x, torch.Tensor)}
    values = {name: x for name, x in kept.items() if name not in tensors}
    groups = [{key: x for key, x in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"state": values, "groups": groups}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Take up what [`optimizer_state`] gave, whose values may have been JSON in between."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **values["state"]}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    load_groups(groups, values)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_groups(groups: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """Of what [`optimizer_state`] gave, all that is not a parameter's."""
    for group, kept in zip(groups, values["groups"], strict=True):
        group.update({key: tuple(x) if isinstance(x, list) else x for key, x in kept.items()})


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
