"""Gradients that have gradients themselves, for functions whose backward is written by hand."""

from collections.abc import Callable, Sequence

import torch


def derivable_gradients(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
    d_output: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Those of `function`, in plain PyTorch, by autograd: one per input, None where none is needed.

    The views are what one input may not share with another that was computed from it: each has its own gradient.
    """
    views = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x, need in zip(views, needed, strict=True) if x is not None and need]
    found = iter(torch.autograd.grad(function(*views), wanted, d_output, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
