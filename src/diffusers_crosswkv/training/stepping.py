"""How one optimizer step is taken: gradients, clipping, and the optimizer's state as whole tensors."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from accelerate import Accelerator

from .config import TrainingConfig
from .denoiser import Denoiser
from .optimizers import load_optimizer_state, optimizer_state
from .sharding import cut_like, to_main, whole
from .zero import ZeroStepper, is_zero


class Stepper:
    """Steps of one process, of DDP and of FSDP2, by Accelerate.

    Args:
        wrapped: the denoiser as it is to be called.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainingConfig, denoiser: Denoiser, optimizer: torch.optim.Optimizer
    ):
        self.accelerator, self.optimizer, self.max_grad_norm = accelerator, optimizer, config.max_grad_norm
        self.wrapped, self.prepared_optimizer = accelerator.prepare(denoiser, optimizer)
        self.parameters = [parameter for _, parameter in denoiser.trained_parameters()]

    def autocast(self) -> AbstractContextManager:
        return self.accelerator.autocast()

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """For prediction and gradient of a part of the batch; processes exchange gradients with the last one."""
        with ExitStack() as stack:
            if not last:
                stack.enter_context(self.accelerator.no_sync(self.wrapped))
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, loss: float) -> tuple[float, bool]:
        """Let the optimizer take its step, unless loss or gradient is not finite; the gradients are gone then.

        In fp16 the scaler leaves such steps out itself, and lowers its scale.

        Args:
            loss: of the batch, over all processes.

        Returns:
            The gradient's norm before clipping, and whether it and the loss were finite.
        """
        norm = whole(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)).item()
        good = math.isfinite(loss) and math.isfinite(norm)
        if good or self.accelerator.scaler is not None:
            self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        return norm, good

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """As [`optimizers.optimizer_state`], of whole parameters. Called on every process."""
        tensors, values = optimizer_state(self.optimizer)
        return {name: to_main(self.accelerator, x) for name, x in tensors.items()}, values

    def load_optimizer_state(self, tensors: Mapping[str, torch.Tensor], values: dict) -> None:
        """Take up what [`~Stepper.optimizer_state`] gave, once the weights of then are in the parameters."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

        def cut(name: str, x: torch.Tensor) -> torch.Tensor:
            like = parameters[int(name.split(".")[0])]
            return cut_like(x, like) if x.dim() and x.shape == like.shape else x  # moments, sharded as it is

        load_optimizer_state(self.optimizer, {name: cut(name, x) for name, x in tensors.items()}, values)


def make_stepper(
    accelerator: Accelerator, config: TrainingConfig, denoiser: Denoiser, optimizer: torch.optim.Optimizer
) -> Stepper | ZeroStepper:
    """Wrap what is trained, as Accelerate was configured."""
    kind = ZeroStepper if is_zero(accelerator) else Stepper
    return kind(accelerator, config, denoiser, optimizer)
