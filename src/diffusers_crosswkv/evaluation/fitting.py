"""The training of small models that measure something, in memory and in a minute or two."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from ..host_memory import freed_memory_kept


def fit(
    model: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    description: str,
    progress: bool = True,
    decayed: Sequence[nn.Parameter] = (),
    weight_decay: float = 0.0,
) -> None:
    """AdamW under one cycle of the learning rate, with clipped gradients; leaves `model` in evaluation mode.

    `weight_decay` (decoupled) is that of the parameters `decayed`; all others have none.
    """
    chosen = set(map(id, decayed))
    groups = [
        {"params": [x for x in model.parameters() if id(x) not in chosen], "weight_decay": 0.0},
        {"params": list(decayed), "weight_decay": weight_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    with freed_memory_kept(next(model.parameters()).device):
        for step in tqdm(range(steps), desc=description, disable=not progress):
            optimizer.zero_grad()
            loss_of_step(step).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
