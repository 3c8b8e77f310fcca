"""The training of small models that measure something, in memory and in a minute or two."""

from collections.abc import Callable

import torch
from torch import nn
from tqdm.auto import tqdm


def fit(
    model: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    description: str,
    progress: bool = True,
) -> None:
    """AdamW under one cycle of the learning rate, with clipped gradients; leaves `model` in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc=description, disable=not progress):
        optimizer.zero_grad()
        loss_of_step(step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
