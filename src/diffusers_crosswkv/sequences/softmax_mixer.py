"""The control: causal softmax attention."""

import torch
import torch.nn.functional as F
from torch import nn


class SoftmaxMixer(nn.Module):
    """Causal attention `[B, T, D]` to `[B, T, D]`, made to be as good as it can be on sequences longer than trained.

    No position is embedded. Half of the heads see distance by ALiBi (arXiv:2108.12409), the other half see none
    (NoPE): the two that lengthen best in arXiv:2305.19466.
    """

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.num_heads = width // head_dim
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        near = -(-self.num_heads // 2)  # rounded up: a single head needs to see order
        slopes = torch.zeros(self.num_heads)
        slopes[:near] = 2.0 ** (-8 * torch.arange(1, near + 1) / near)
        self.register_buffer("slopes", slopes, persistent=False)
        self.slopes: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[:, None] - place
        bias = -self.slopes[:, None, None] * distance
        bias = bias.masked_fill(distance < 0, -torch.inf).to(x.dtype)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(read.transpose(1, 2).flatten(-2))
