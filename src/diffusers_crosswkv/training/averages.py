"""The running average of the trained weights, which is what a run returns."""

from collections.abc import Iterator, Mapping

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from .sharding import cut_like, local, whole_from_local


class Averages:
    """Diffusers' EMA over named parameters, each process over its own shards.

    Args:
        decay: share of the old average in the new one, in [0, 1); less in the first steps, as in Diffusers. With 0 the
            average is the last step, and nothing is kept.
        on_cpu: keep them in main memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, on_cpu: bool = False):
        self.parameters, self.on_cpu = dict(parameters), on_cpu
        self.ema = EMAModel(self._parts(), decay=decay, foreach=True) if decay else None

    def step(self) -> None:
        if self.ema is not None:
            self.ema.step(self._parts())

    @torch.no_grad()
    def _parts(self) -> list[torch.Tensor]:
        parts = [local(parameter).detach() for parameter in self.parameters.values()]
        return [(part.cpu() if self.on_cpu else part).requires_grad_() for part in parts]  # EMAModel copies others

    @property
    def steps(self) -> int:
        return 0 if self.ema is None else self.ema.optimization_step

    @torch.no_grad()
    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and averages, one after the other, whole, on every process; collective if the weights are sharded."""
        parts = self.ema.shadow_params if self.ema is not None else [local(x) for x in self.parameters.values()]
        for (name, parameter), part in zip(self.parameters.items(), parts, strict=True):
            yield name, whole_from_local(part, parameter).detach()

    def kept(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As [`~Averages.whole`], but nothing if the average is the last step."""
        if self.ema is not None:
            yield from self.whole()

    @torch.no_grad()
    def load_state_dict(self, averages: Mapping[str, torch.Tensor], steps: int) -> None:
        if self.ema is None:
            return
        self.ema.optimization_step = steps
        for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            shadow.copy_(local(cut_like(averages[name], parameter)))
