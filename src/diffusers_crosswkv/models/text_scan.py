"""The scan of a text into states: some heads pass it from its beginning, the others from its end.

A head remembers best what it passed last. With both directions neither an early nor a late clause is far from a head's
end, and states stay what they are: of constant size, and a text can be continued. For scans are linear in what they
start from: a backward head passes the continuation first, `S_new`, and then the text before it, whose tokens multiply
what they find by a transition `T` (`K x K`) and add `S_earlier`, both known: `S_new T + S_earlier`.
"""

import torch
from crosswkv_kernels import Write, final_state


def turn_backward(write: Write, backward_heads: int) -> Write:
    """The last `backward_heads` heads get their tokens in reversed order."""
    if backward_heads == 0:
        return write
    directions = (write.kappa.shape[2] - backward_heads, backward_heads)
    parts = (x.split(directions, dim=2) for x in write)
    return type(write)(*(torch.cat((forward, backward.flip(1)), dim=2) for forward, backward in parts))


def backward_transitions(write: Write, backward_heads: int) -> torch.Tensor:
    """`[B, backward_heads, K, K]`: what a text's tokens multiply a state by that a backward head brings to it."""
    w, k, _, kappa, a = (x[:, :, x.shape[2] - backward_heads :] for x in write.mapped())
    batch_size, _, heads, head_dim = kappa.shape
    start = torch.eye(head_dim, device=k.device).expand(batch_size, heads, -1, -1)
    return final_state(Write(w, torch.zeros_like(k), torch.zeros_like(kappa), kappa, a), start)


def start_of_continuation(earlier: torch.Tensor, backward_heads: int) -> torch.Tensor:
    """Forward heads go on from the earlier text's state `[B, H, V, K]`; backward heads start at the end, from zero."""
    forward = earlier.shape[1] - backward_heads
    return torch.cat((earlier[:, :forward], torch.zeros_like(earlier[:, forward:])), dim=1)


def pass_earlier_text(
    state: torch.Tensor, earlier: torch.Tensor, backward_heads: int, transition: torch.Tensor | None
) -> torch.Tensor:
    """Let the backward heads, which have passed the continuation, pass the text before it too.

    `transition` is None for what stands before a text without being one: it adds `earlier` and changes nothing.
    """
    forward = state.shape[1] - backward_heads
    brought = state[:, forward:]
    if transition is not None:
        brought = brought @ transition.to(state)
    return torch.cat((state[:, :forward], brought + earlier[:, forward:].to(state)), dim=1)
