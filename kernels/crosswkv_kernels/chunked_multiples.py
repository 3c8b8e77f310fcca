"""The state alone in chunks, where each token and head has one decay, one rate and, for both keys, one direction.

That is what `state` fusion writes: `k = s kappa` with a number s. Then all that a token changes lies along `kappa`:
`S_t = e^w_t S_(t-1) + p_t^T kappa_t`, with a number p per value. With `c` the running sum of the log decays and `P`
what is left of them at the end of a chunk, `e^(c_last - c_t) p_t`, a chunk does

    (I + L) P = s e^(c_last - c) V - rho e^c_last (kappa S_0^T)        S_next = e^c_last S_0 + P^T kappa

with `rho = a e^-w` and `L = tril(rho kappa kappa^T, -1)`: half of the products that `chunked_state.py` makes for
decays and keys of all channels, and no factor grows with the length of a chunk.

In the gradient, let `R` be that of what stands on the right of the system. Through rho a token's rate and decay get
`-R . U` with `U = e^c_last (kappa S_0^T) + tril(kappa kappa^T, -1) P`; besides, a decay gets the sum of
`(R . s V) e^(c_last - c)` of the tokens before it in its chunk and, as all decays of the chunk, the product of `S_0`
and its gradient.
"""

from typing import NamedTuple

import torch

from .chunk_factors import drop_subnormal, unit_inverse
from .elementwise import Write

SINGLE_CHUNK_SIZE = 96  # tokens of a whole text, forward; longer ones are faster in chunks of `STATE_CHUNK_SIZE`


class Passed(NamedTuple):
    """What a scan over chunks leaves for its backward, `[N, G, ...]` each with G = B * H."""

    left: torch.Tensor  # e^(c_last - c), what is left of a token's write, [N, G, C, 1]
    decay: torch.Tensor  # e^c_last, [N, G, 1, 1]
    rho: torch.Tensor  # [N, G, C, 1]
    gram: torch.Tensor  # kappa kappa^T, [N, G, C, C]
    X: torch.Tensor  # (I + L)^-1
    found: torch.Tensor  # kappa S_0^T, [N, G, C, V]
    P: torch.Tensor
    states: torch.Tensor  # before each chunk and behind the last, [N + 1, G, V, K]


def decay_factors(write: Write) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`left`, `decay` and `rho` of a scan."""
    c = write.w.cumsum(2)
    last = c[:, :, -1:]
    return (last - c).exp_(), last.exp(), write.a * write.w.neg().exp_()


def last_state(write: Write, state: torch.Tensor | None) -> torch.Tensor:
    """Behind the last chunk, from what was before the first, `[G, V, K]`, or from zeros."""
    left, decay, rho = decay_factors(write)
    L = (write.kappa @ write.kappa.mT).mul_(rho)
    in_order = (x.unbind() for x in (L, (write.k * left) * write.v, write.kappa, decay, rho * decay))
    for L_i, right, kappa, decay_i, removed in zip(*in_order, strict=True):
        if state is not None:
            right.addcmul_(removed, kappa @ state.mT, value=-1)
        P = torch.linalg.solve_triangular(L_i, right, upper=False, unitriangular=True)
        state = P.mT @ kappa if state is None else torch.baddbmm(state * decay_i, P.mT, kappa)
    assert state is not None
    return state


def pass_chunks(write: Write, state: torch.Tensor) -> Passed:
    """Batched over chunks; only the state `[G, V, K]` goes through them one by one."""
    left, decay, rho = decay_factors(write)
    gram = write.kappa @ write.kappa.mT
    X, right = unit_inverse(gram * rho), (write.k * left) * write.v
    found, P = torch.empty_like(right), torch.empty_like(right)
    states = state.new_empty(len(right) + 1, *state.shape)
    states[0] = state
    in_order = (x.unbind() for x in (states[:-1], states[1:], found, P, right, X, write.kappa, decay, rho * decay))
    for start, end, found_i, P_i, right_i, X_i, kappa_i, decay_i, removed_i in zip(*in_order, strict=True):
        torch.bmm(kappa_i, start.mT, out=found_i)
        torch.bmm(X_i, right_i.addcmul_(removed_i, found_i, value=-1), out=P_i)
        torch.mul(start, decay_i, out=end).baddbmm_(P_i.mT, kappa_i)
    return Passed(left, decay, rho, gram, X, found, P, states)


def gradients_of_chunks(write: Write, passed: Passed, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of w, k, v, kappa and a in chunks, and of the state `[G, V, K]` before the first chunk."""
    w, k, v, kappa, _ = write
    left, decay, rho, gram, X, found, P, states = passed
    R, d_states = torch.empty_like(P), torch.empty_like(states)
    d_states[-1] = d_state
    in_reverse = (x.unbind()[::-1] for x in (d_states[:-1], d_states[1:], R, X, kappa, decay, rho))
    for d_start, d_end, R_i, X_i, kappa_i, decay_i, rho_i in zip(*in_reverse, strict=True):
        torch.bmm(X_i.mT, kappa_i @ d_end.mT, out=R_i)
        torch.baddbmm(d_end, (rho_i * R_i).mT, kappa_i, alpha=-1, out=d_start)
        drop_subnormal(d_start.mul_(decay_i), out=d_start)
    starts, d_starts, d_ends = states[:-1], d_states[:-1], d_states[1:]
    d_gram = (R @ P.mT).tril_(-1).mul_(rho)  # and below, as in `d_rho`, the sign of L's gradient
    d_kappa = kappa.mT @ (d_gram + d_gram.mT)  # channels before tokens, as `kappa` may have them in memory
    of_states = torch.cat((d_ends, starts), 2).mT.flatten(0, 1)
    of_tokens = torch.cat((P, R * (rho * decay).neg_()), 3).mT.flatten(0, 1)
    d_kappa.flatten(0, 1).baddbmm_(of_states, of_tokens, beta=-1)
    U = (gram.tril_(-1) @ P).addcmul_(decay, found)
    d_rho = (R * U).sum(-1, keepdim=True).neg_()
    d_k = (R * v).sum(-1, keepdim=True).mul_(left)
    before = torch.nn.functional.pad(d_k * k, (0, 0, 1, -1)).cumsum(2)  # of the tokens before each one
    d_w = before.sub_(rho * d_rho).add_((starts * d_starts).sum((-2, -1), keepdim=True))
    return d_w, d_k, R.mul_(k * left), d_kappa.mT, d_rho.mul_(w.neg().exp_()), d_states[0]
