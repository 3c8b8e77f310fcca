"""The recurrence in chunks of matrix products, in plain PyTorch: any device, forward and (by autograd) backward.

Inside a chunk that starts from the state `S`, with `c` the running sum of the log decays, the value that token `t`
removes is `u_t = S_{t-1} kappa_t`. Unrolled, all `u` of a chunk solve one unit lower triangular system (the WY form
of a product of rank-1 updates, as in DeltaNet, arXiv:2406.06484):

    (I + L) U = A S^T + M V      A = kappa e^(c_prev),  L = tril(A (a kappa e^-c)^T, -1),  M = tril(A (k e^-c)^T, -1)

and outputs and the next state are matrix products of U, V and S. The exponents are taken relative to the decay at
mid-chunk: a step decays by at most exp(-0.6065), so 64 steps stay within e^(+-19.5), far inside float32.
"""

import torch

from .reference import compute_dtype, whole_keys, zero_state

CHUNK_SIZE = 64


def wkv7_chunked(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The same function as [`wkv7`]; work is batched over chunks, only the state goes through them one by one."""
    dtype, output_dtype = compute_dtype(r, w, k, v, kappa, a, initial_state), v.dtype
    length = k.shape[1]
    state = zero_state(v, kappa.shape[-1], dtype) if initial_state is None else initial_state.to(dtype)
    if length == 0:
        return None if r is None else torch.zeros_like(v), state if output_final_state or r is None else None

    num_chunks = -(-length // CHUNK_SIZE)
    size = -(-length // num_chunks)  # chunks of equal length: 77 tokens are 2 x 39, not 64 + 13

    def chunks(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, D] -> [B, H, N, C, D]; padding tokens change nothing
        x = x.to(dtype).transpose(1, 2)
        x = torch.nn.functional.pad(x, (0, 0, 0, num_chunks * size - length))
        return x.unflatten(2, (num_chunks, size))

    w, k, v, kappa, a = (chunks(x) for x in (w, k, v, kappa, a))
    k = whole_keys(k, kappa)
    c = w.cumsum(-2)
    middle = c[..., size // 2, None, :].detach()  # any constant gives the same result: no gradient
    before, after = (c - w - middle).exp(), (c - middle).exp()
    inverse = (middle - c).exp()
    A, K, B = kappa * before, k * inverse, kappa * a * inverse  # [B, H, N, C, K]
    L, M = (A @ B.mT).tril(-1), (A @ K.mT).tril(-1)  # [B, H, N, C, C]
    enters_zero = initial_state is None and num_chunks == 1  # then nothing is carried over, and W need not be known
    right = M @ v if enters_zero else torch.cat((A, M @ v), -1)
    solution = torch.linalg.solve_triangular(L, right, upper=False, unitriangular=True)  # U = W S^T + Y
    W, Y = solution.split((right.shape[-1] - v.shape[-1], v.shape[-1]), -1)

    # S_next = (S e^middle (I - W^T B) + V^T K - Y^T B) e^(c_last - middle)
    enter, leave = middle.exp(), after[..., -1:, :]  # [B, H, N, 1, K]
    written = (v.mT @ K - Y.mT @ B) * leave  # [B, H, N, V, K]
    starts = []
    if enters_zero:
        state = written[:, :, 0]
    else:
        removed = (W.mT @ B) * leave  # [B, H, N, K, K]
        for i in range(num_chunks):
            start = state * enter[:, :, i]
            starts.append(start)
            state = start * leave[:, :, i] - start @ removed[:, :, i] + written[:, :, i]
    final_state = state if output_final_state or r is None else None
    if r is None:
        return None, final_state

    R = chunks(r) * after
    o, U = (R @ K.mT).tril() @ v, Y
    if not enters_zero:
        S = torch.stack(starts, dim=2)  # [B, H, N, V, K], relative to mid-chunk
        o, U = o + R @ S.mT, U + W @ S.mT
    o = o - (R @ B.mT).tril() @ U
    o = o.flatten(2, 3)[:, :, :length].transpose(1, 2)
    return o.to(output_dtype), final_state
