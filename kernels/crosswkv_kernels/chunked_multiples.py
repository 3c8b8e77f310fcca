"""The state alone in chunks, where each token and head has one decay, one rate and, for both keys, one direction.

That is what `state` fusion writes: `k = s kappa` with a number s. One product `kappa kappa^T` then serves removals and
replacements, and decays scale rows. With `S_0` the state relative to mid-chunk, a chunk does

    G = tril(b kappa kappa^T, -1)        X = (I + G diag(a i))^-1
    U = X (b (kappa S_0^T) + G (s i V))        P = s i V - a i U        S_next = (S_0 + P^T kappa) e^(c_last - middle)

with `b = e^(c_(t-1) - middle)` and `i = e^(middle - c_t)`, a number per token, in less than half of the products that
`chunked_state.py` makes for decays and keys of all channels. What enters the gradient of `b`, and through `a i` that
of `i`, is one number per token: with `R` the gradient of what `X` is applied to, `G P = U - b (kappa S_0^T)` and
`a i (dP + G^T R) = -R` make both `R . U`.
"""

from typing import NamedTuple

import torch

from .chunk_factors import decays_of, drop_subnormal, sum_from_behind, unit_inverse
from .elementwise import Write


class Passed(NamedTuple):
    """What a scan over chunks leaves for its backward, `[N, G, ...]` each with G = B * H."""

    before: torch.Tensor  # b, [N, G, C, 1]
    leave: torch.Tensor  # e^(c_last - middle), [N, G, 1, 1]
    enter: torch.Tensor  # e^middle
    inverse: torch.Tensor  # i, [N, G, C, 1]
    gram: torch.Tensor  # [N, G, C, C]
    X: torch.Tensor
    U: torch.Tensor  # [N, G, C, V]
    P: torch.Tensor
    starts: torch.Tensor  # S_0, [N, G, V, K]
    ends: torch.Tensor  # S_next; the last is what `pass_chunks` is called for


def pass_chunks(write: Write, state: torch.Tensor) -> Passed:
    """Batched over chunks; only the state `[G, V, K]` goes through them one by one."""
    w, k, v, kappa, a = write
    before, _, inverse, enter, leave = decays_of(w)
    removed, written = a * inverse, (k * inverse) * v
    gram = (kappa @ kappa.mT).mul_(before).tril_(-1)
    X, right = unit_inverse(gram * removed.mT), gram @ written
    U = torch.empty_like(v)
    starts = state.new_empty(len(v), *state.shape)
    ends = torch.empty_like(starts)
    in_order = (x.unbind() for x in (starts, ends, U, enter, leave, before, right, written, removed, X, kappa))
    for start, end, U_i, enter_i, leave_i, before_i, right_i, written_i, removed_i, X_i, kappa_i in zip(
        *in_order, strict=True
    ):
        torch.mul(state, enter_i, out=start)
        found = torch.bmm(kappa_i, start.mT)
        torch.bmm(X_i, right_i.addcmul_(before_i, found), out=U_i)
        P_i = written_i.addcmul_(removed_i, U_i, value=-1)
        state = torch.baddbmm(start, P_i.mT, kappa_i, out=end).mul_(leave_i)
    return Passed(before, leave, enter, inverse, gram, X, U, written, starts, ends)


def gradients_of_chunks(write: Write, passed: Passed, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of w, k, v, kappa and a in chunks, and of the state `[G, V, K]` before the first chunk."""
    _, k, v, kappa, a = write
    before, leave, enter, inverse, gram, X, U, P, starts, ends = passed
    written, removed = k * inverse, a * inverse
    d_written = torch.empty_like(starts)  # of S_0 + P^T kappa
    d_P, R = torch.empty_like(U), torch.empty_like(U)
    in_reverse = (x.unbind()[::-1] for x in (d_written, d_P, R, leave, enter, before, removed, X, kappa))
    for d_written_i, d_P_i, R_i, leave_i, enter_i, before_i, removed_i, X_i, kappa_i in zip(*in_reverse, strict=True):
        torch.mul(d_state, leave_i, out=d_written_i)
        torch.bmm(kappa_i, d_written_i.mT, out=d_P_i)
        torch.bmm(X_i.mT, d_P_i * -removed_i, out=R_i)
        d_state = drop_subnormal(torch.baddbmm(d_written_i, (before_i * R_i).mT, kappa_i).mul_(enter_i))
    d_last = (d_written * ends).sum((-2, -1), keepdim=True) / leave
    d_P += gram.mT @ R  # with what goes through G
    d_k, d_a = ((x * d_P).sum(-1, keepdim=True) for x in (v, U))  # times i, and -i
    d_gram = (R @ P.mT).tril_(-1).mul_(before)
    d_kappa = kappa.mT @ (d_gram + d_gram.mT)  # channels before tokens, as `kappa` may have them in memory
    of_states = torch.cat((d_written, starts), 2).mT.flatten(0, 1)
    d_kappa.flatten(0, 1).baddbmm_(of_states, torch.cat((P, before * R), 3).mT.flatten(0, 1))
    d_c = -d_k * written
    d_c[:, :, -1:] += d_last
    d_w = sum_from_behind(d_c).sub_((R * U).sum(-1, keepdim=True))
    return d_w, d_k * inverse, d_P.mul_(written), d_kappa.mT, (d_a * inverse).neg_(), d_state
