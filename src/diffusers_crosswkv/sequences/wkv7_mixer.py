"""RWKV-7's layer over one sequence: CrossWKV whose `x` and `q` are the same tokens."""

import torch
from crosswkv_kernels import Write, wkv7
from torch import nn

from ..models.readout_norms import ScanNorm
from ..models.state_writer import LowRank, StateWriter

RANK = 16  # of the LoRAs of decay, rate and gate
STRETCH = 1.1  # of the rates around 1
REFLECTING = 4.0  # bias of the rate before its sigmoid


class WKV7Mixer(nn.Module):
    """Equations 4 to 16 of the paper for `[B, T, D]`, causal; the value residual (10) is left out.

    Args:
        width: D, of tokens, keys and values.
        head_dim: K = V, divides D.
        rate_limit: 1 is RWKV-7's in-context rate in (0, 1). With 2 it is [`doubled_rate`], which gives a transition a
            negative eigenvalue down to -1: a token can swap two directions of the state, not only erase one. It starts
            near 2: every token reflects the state along a random key, and no token erases what another one may need.
        delta_rule: off is a state that only decays, per channel (kappa = 0).
        learned_start: the state before the first token is a parameter (as in state tuning, arXiv:2504.05097), not 0.
        output_norm: normalise what is read, per head (equation 14).
    """

    def __init__(
        self,
        width: int,
        head_dim: int,
        *,
        rate_limit: int,
        delta_rule: bool,
        learned_start: bool,
        output_norm: bool,
    ):
        super().__init__()
        self.num_heads, self.rate_limit, self.delta_rule = width // head_dim, rate_limit, delta_rule
        self.writer = StateWriter(
            width,
            key_dim=width,
            value_dim=width,
            num_heads=self.num_heads,
            decay_rank=RANK,
            in_context_lr_rank=RANK,
            value_rank=0,
            position=0.0,
            first_in_group=True,
            of_text=True,  # starts to remember long, and without looking back
            feature_map="identity",  # a swap needs keys of both signs
        )
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        if rate_limit == 2:
            nn.init.constant_(self.writer.in_context_lr_lora.expand.bias, REFLECTING)
        self.gate_lora = LowRank(width, width, RANK, torch.sigmoid, torch.ones(width))
        self.norm = ScanNorm(self.num_heads, head_dim, width, head_dim * 1e-5, output_norm)
        start = torch.randn(self.num_heads, head_dim, head_dim) * head_dim**-0.5
        self.start = nn.Parameter(start) if learned_start else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        receptance = self.to_q(x).unflatten(-1, (self.num_heads, -1))
        write = self.write(x)
        output, _ = wkv7(receptance, *write, initial_state=self.first_state(x))
        return self.to_out(self.norm(output, receptance, write.keys, write.v, self.gate_lora(x)))

    def states(self, x: torch.Tensor) -> torch.Tensor:
        """The state behind every token, `[B, T, H, V, K]`."""
        write, state = self.write(x), self.first_state(x)
        states: list[torch.Tensor] = []
        for t in range(x.shape[1]):
            _, state = wkv7(None, *(part[:, t : t + 1] for part in write), initial_state=state)
            assert state is not None  # no receptance: the state is what was asked for
            states.append(state)
        return torch.stack(states, dim=1)

    def write(self, x: torch.Tensor) -> Write:
        """What the tokens `[B, T, D]` do to the state: `w, k, v, kappa, a`."""
        x_w, x_k, x_v, x_a = self.writer.mix(x)
        write = self.writer(self.to_k(x_k), self.to_v(x_v), x_w, x_v, x_a)
        if not self.delta_rule:
            return write._replace(kappa=torch.zeros_like(write.kappa))
        return write._replace(a=doubled_rate(write.w, write.a)) if self.rate_limit == 2 else write

    def first_state(self, x: torch.Tensor) -> torch.Tensor | None:
        return None if self.start is None else self.start.expand(len(x), -1, -1, -1)


def doubled_rate(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """From rates in (0, 1) to one rate per head in [0, 2] that no sequence of tokens can make grow the state.

    `rate = clamp(1.1 (mean(a) - 0.5) + 0.5, 0, 1) (1 + min(exp(w)))`, mean and minimum over the K channels of a head,
    `[..., K]` to `[..., K]`. The stretch lets a rate be 0 or 2 exactly: a sigmoid that comes close stays short of it
    once the loss is small, and what every token is short of adds up over a long sequence.

    With one rate per head, `A = diag(exp w) - rate kappa^T kappa` is symmetric. For a unit x,
    `x A x^T <= max(exp w) <= 1`, and `x A x^T >= min(exp w) - rate >= min(exp w) - (1 + min(exp w)) = -1`.
    So the spectral norm of A is at most 1, and that of any product of such A too.

    Different rates per channel would allow `a_i = c_i (1 + exp(w_i))`, c in [0, 1]: with `u = kappa sqrt(a)`, A is
    similar to `diag(exp w) - u^T u`, whose eigenvalues are in [-1, 1], for `sum(u^2 / (1 + exp w))` is
    `sum(c kappa^2) <= 1`. But that A is not symmetric: its norm exceeds 1, each token has a similarity of its own, and
    there are pairs of tokens whose product has an eigenvalue beyond 1: repeated, they make the state grow.
    """
    share = (STRETCH * (a.mean(-1, keepdim=True) - 0.5) + 0.5).clamp(0, 1)
    rate = share * (1 + w.exp().amin(-1, keepdim=True))
    return rate.expand_as(a)
