"""The state alone in chunks, where each token and head has one decay, one rate and, for both keys, one direction.

That is what `state` fusion writes: `k = s kappa` with a number s. One product `kappa kappa^T` then serves removals and
replacements, and decays scale rows. With `S_0` the state relative to mid-chunk, a chunk does

    G = kappa kappa^T    L = tril(b G (a i)^T, -1)    M = tril(b G (s i)^T, -1)    X = (I + L)^-1
    U = X (b (kappa S_0^T) + M V)    P = s i V - a i U    S_next = (S_0 + P^T kappa) e^(c_last - middle)

with `b = e^(c_(t-1) - middle)` and `i = e^(middle - c_t)`, a number per token, in half of the products that
`chunked_state.py` makes for decays and keys of all channels.
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
    gram: torch.Tensor  # b G below the diagonal, [N, G, C, C]
    M: torch.Tensor
    X: torch.Tensor
    found: torch.Tensor  # kappa S_0^T, [N, G, C, V]
    U: torch.Tensor
    starts: torch.Tensor  # S_0, [N, G, V, K]
    ends: torch.Tensor  # S_next; the last is what `pass_chunks` is called for


def pass_chunks(write: Write, state: torch.Tensor) -> Passed:
    """Batched over chunks; only the state `[G, V, K]` goes through them one by one."""
    w, k, v, kappa, a = write
    before, _, inverse, enter, leave = decays_of(w)
    keys, removed = k * inverse, a * inverse
    gram = (kappa @ kappa.mT).mul_(before).tril_(-1)
    M, X = gram * keys.mT, unit_inverse(gram * removed.mT)
    right, written = M @ v, keys * v
    found, U = torch.empty_like(v), torch.empty_like(v)
    starts = state.new_empty(len(v), *state.shape)
    ends = torch.empty_like(starts)
    in_order = (x.unbind() for x in (starts, ends, found, U, enter, leave, before, right, written, removed, X, kappa))
    for start, end, found_i, U_i, enter_i, leave_i, before_i, right_i, written_i, removed_i, X_i, kappa_i in zip(
        *in_order, strict=True
    ):
        torch.mul(state, enter_i, out=start)
        torch.bmm(kappa_i, start.mT, out=found_i)
        torch.bmm(X_i, torch.addcmul(right_i, before_i, found_i), out=U_i)
        P_i = torch.addcmul(written_i, removed_i, U_i, value=-1)
        state = torch.baddbmm(start, P_i.mT, kappa_i, out=end).mul_(leave_i)
    return Passed(before, leave, enter, inverse, gram, M, X, found, U, starts, ends)


def gradients_of_chunks(write: Write, passed: Passed, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of w, k, v, kappa and a in chunks, and of the state `[G, V, K]` before the first chunk."""
    _, k, v, kappa, a = write
    before, leave, enter, inverse, gram, M, X, found, U, starts, ends = passed
    written, removed = k * inverse, a * inverse
    d_written = torch.empty_like(starts)  # of S_0 + P^T kappa
    d_P, d_right = torch.empty_like(U), torch.empty_like(U)
    in_reverse = (x.unbind()[::-1] for x in (d_written, d_P, d_right, leave, enter, before, removed, X, kappa))
    for d_written_i, d_P_i, d_right_i, leave_i, enter_i, before_i, removed_i, X_i, kappa_i in zip(
        *in_reverse, strict=True
    ):
        torch.mul(d_state, leave_i, out=d_written_i)
        torch.bmm(kappa_i, d_written_i.mT, out=d_P_i)
        torch.bmm(X_i.mT, d_P_i * -removed_i, out=d_right_i)  # of b (kappa S_0^T) + M V
        d_state = drop_subnormal(torch.baddbmm(d_written_i, (before_i * d_right_i).mT, kappa_i).mul_(enter_i))
    d_last = (d_written * ends).sum((-2, -1), keepdim=True) / leave
    d_v = (written * d_P).add_(M.mT @ d_right)
    d_L, d_M = (d_right @ U.mT).neg_(), d_right @ v.mT  # of their lower triangles
    d_found = before * d_right
    d_removed = (d_L * gram).sum(-2).unsqueeze(-1) - (d_P * U).sum(-1, keepdim=True)
    d_written_keys = (d_M * gram).sum(-2).unsqueeze(-1) + (d_P * v).sum(-1, keepdim=True)
    d_gram = d_L.mul_(removed.mT).add_(d_M.mul_(written.mT)).tril_(-1)
    through_before = (d_gram * gram).sum(-1, keepdim=True) + (d_found * found).sum(-1, keepdim=True)  # b times its own
    d_gram.mul_(before)
    P = (written * v).addcmul_(removed, U, value=-1)
    d_kappa = (d_gram + d_gram.mT) @ kappa
    d_kappa.add_(P @ d_written).add_(d_found @ starts)
    d_c = through_before - d_removed * removed - d_written_keys * written
    d_c[:, :, -1:] += d_last
    d_w = sum_from_behind(d_c).sub_(through_before)
    return d_w, d_written_keys * inverse, d_v, d_kappa, d_removed * inverse, d_state
