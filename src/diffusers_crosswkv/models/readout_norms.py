"""What happens to what a state or a scan gives: equations 13 to 16 of the paper, with their parameters."""

import torch
from crosswkv_kernels import QUADRATIC, scan_readout, state_readout
from torch import nn


class StateNorm(nn.Module):
    """Equations 13, 14 and 16 for a state that is only read: channels `[B, T, H * channels]` to `[B, T, H * V]`."""

    def __init__(self, num_heads: int, value_dim: int, eps: float, normalize: bool, feature_map: str):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(value_dim))
        self.bias = nn.Parameter(torch.zeros(value_dim)) if normalize else None
        # products tell nothing of a receptance's size: how large a read is, against `eps`, is learnt per head
        scaled = normalize and feature_map == QUADRATIC
        self.read_scale = nn.Parameter(torch.full((num_heads,), 0.5)) if scaled else None
        self.num_heads, self.eps, self.feature_map = num_heads, eps, feature_map

    def forward(
        self, channels: torch.Tensor, state: torch.Tensor, gate: torch.Tensor | None, overwrite: bool = False
    ) -> torch.Tensor:
        """`overwrite`: whether the result may take the place of the channels in memory."""
        if self.read_scale is not None:
            state = state * self.read_scale.view(-1, 1, 1)
        weight: torch.Tensor | None = self.weight
        if self.bias is None:  # a weight of each value is one of each row of the state
            state, weight = state * self.weight.view(state.shape[1], -1, 1), None
        receptance = channels.unflatten(-1, (self.num_heads, -1))
        return state_readout(
            receptance,
            state,
            weight,
            self.bias,
            gate,
            self.eps,
            feature_map=self.feature_map,
            overwrite_r=overwrite,
        )


class ScanNorm(nn.Module):
    """Equations 14 to 16 for the output of a scan: norm per head, plus the bonus, times the gate."""

    def __init__(self, num_heads: int, head_dim: int, value_dim: int, eps: float, normalize: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(value_dim)) if normalize else None
        self.bias = nn.Parameter(torch.zeros(value_dim)) if normalize else None
        self.r_k = nn.Parameter(torch.full((num_heads, head_dim), -0.04))
        self.eps = eps

    def forward(
        self,
        output: torch.Tensor,
        receptance: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor,
    ) -> torch.Tensor:
        """`output`, `value` are `[B, T, H, V]`, `receptance`, `key` `[B, T, H, K]`; all but the gate may stop early.

        A token behind their end has a zero receptance: it reads zero, and its bonus is zero.
        """
        return scan_readout(output, receptance, key, value, self.r_k, self.weight, self.bias, gate, self.eps)
