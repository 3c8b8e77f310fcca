"""How large the states of a U-Net are, and how much of their room is used: section 4.7 of the paper.

A state that grows without bound overflows, and one whose numbers all lie along one direction has forgotten all but one
thing. Two figures per head tell: the root mean square of its numbers, and the stable rank
`||S||_F^2 / ||S||_2^2`, 1 for a matrix of rank one and min(K, V) for one whose singular values are all alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .crosswkv import CrossWKV


@dataclass(frozen=True)
class StateStatistics:
    """Of one layer's states `[B, H, V, K]`.

    Args:
        rms: root mean square of a head's numbers: the mean over heads and batch.
        max_rms: of the largest head.
        max_abs: the largest number of all.
        stable_rank: the mean over heads and batch, from 1 to min(K, V); heads that hold nothing are left out, and if
            all do, it is 0.
        min_stable_rank: of the head where it is smallest.
        finite: whether all numbers are; if not, the others say nothing and are NaN.
    """

    rms: float
    max_rms: float
    max_abs: float
    stable_rank: float
    min_stable_rank: float
    finite: bool


def state_statistics(state: torch.Tensor) -> StateStatistics:
    """Statistics of one layer's states `[B, H, V, K]`, computed in float64.

    Raises:
        ValueError: `state` has another number of dimensions, or is empty.
    """
    if state.ndim != 4 or state.numel() == 0:
        raise ValueError(f"`state` must be [B, H, V, K] and not empty, got {list(state.shape)}.")
    heads = state.detach().cpu().double().flatten(0, 1)  # [B * H, V, K]
    if not heads.isfinite().all():
        nan = float("nan")
        return StateStatistics(nan, nan, nan, nan, nan, finite=False)
    rms = heads.square().mean((1, 2)).sqrt()
    largest = torch.linalg.matrix_norm(heads, ord=2)
    holds = largest > 0
    ranks = heads[holds].square().sum((1, 2)) / largest[holds].square()
    return StateStatistics(
        rms=rms.mean().item(),
        max_rms=rms.max().item(),
        max_abs=heads.abs().max().item(),
        stable_rank=ranks.mean().item() if len(ranks) else 0.0,
        min_stable_rank=ranks.min().item() if len(ranks) else 0.0,
        finite=True,
    )


@contextmanager
def observe_states(unet: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the context, every forward pass of `unet` leaves here, by layer name, the states that its image reads.

    In `state` fusion that is the text's state; in `prefix` and `paper` the state behind the image's last token (in
    `paper` the last that has a receptance). Each pass replaces those of the one before; layers are in the order of
    execution. With `torch.compile`, open the context before the first pass.

    Raises:
        ValueError: `unet` has no CrossWKV layer.
    """
    layers = {name.removesuffix(".crosswkv"): x for name, x in unet.named_modules() if isinstance(x, CrossWKV)}
    if not layers:
        raise ValueError(f"`unet` must have CrossWKV layers, but {type(unet).__name__} has none: it holds no states.")
    layers = dict(sorted(layers.items(), key=lambda item: item[1].layer_index))
    states: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        layer.state_observer = lambda state, name=name: states.__setitem__(name, state.detach())
    try:
        yield states
    finally:
        for layer in layers.values():
            layer.state_observer = None
