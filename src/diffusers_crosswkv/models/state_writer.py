"""What tokens write into the state: equations 4, 5 and 8 to 12 of the paper, the projections of 7 in between."""

import torch
from crosswkv_kernels import QUADRATIC, Write, state_writes, token_shift_mix
from torch import nn

from .initial_values import (
    channel_ramp,
    head_zigzag,
    initial_decay,
    initial_mix,
    initial_text_decay,
    initial_text_mix,
    initial_text_value_share,
    initial_value_share,
)


class LowRank(nn.Module):
    """`expand(activation(reduce(x)))`, the LoRAs of equations 8 to 10: `[B, T, in] -> [B, T, out]`.

    The bias belongs to `expand`; its initial value is what the module returns for an untrained network, nearly. With
    rank 0 it always returns the bias.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, activation, bias: torch.Tensor | None):
        super().__init__()
        self.rank = rank
        self.activation = activation
        if rank == 0:
            assert bias is not None
            self.bias = nn.Parameter(bias)
            return
        self.reduce = nn.Linear(in_features, rank, bias=False)
        self.expand = nn.Linear(rank, out_features, bias=bias is not None)
        nn.init.zeros_(self.reduce.weight)
        weight = torch.empty_like(self.expand.weight, dtype=torch.float32)  # no CPU does it in float16
        self.expand.weight = nn.Parameter(nn.init.orthogonal_(weight, gain=0.1).to(self.expand.weight.dtype))
        if bias is not None:
            self.expand.bias = nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rank == 0:
            return self.bias.to(x.dtype).expand(*x.shape[:-1], -1)
        return self.expand(self.activation(self.reduce(x)))


class TokenShiftMix(nn.Module):
    """Equations 4 and 5: `[B, T, D]` mixed with its predecessor in `n` ways, a tuple of `n` tensors."""

    def __init__(self, mu: torch.Tensor):
        super().__init__()
        self.mu = nn.Parameter(mu)

    def forward(self, x: torch.Tensor, previous: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        return token_shift_mix(x, self.mu, previous).unbind(0)


class StateWriter(nn.Module):
    """Equations 8 to 12: what tokens of one source, text or image, write into the state.

    The projections of key and value (7) happen between `mix` and the call, by whoever owns them.

    With the feature map `quadratic` features belong to pairs of channels: decay, in-context learning rate and `k_a`
    are one per head there, and the removal key has the direction of the key.
    """

    def __init__(
        self,
        source_dim: int,
        key_dim: int,
        value_dim: int,
        num_heads: int,
        *,
        decay_rank: int,
        in_context_lr_rank: int,
        value_rank: int,
        position: float,
        first_in_group: bool,
        of_text: bool,
        feature_map: str,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.feature_map = feature_map
        per_head = feature_map == QUADRATIC
        rates = num_heads if per_head else key_dim  # decays and learning rates of a token
        mix = initial_text_mix(source_dim) if of_text else initial_mix(source_dim, position)
        decay = initial_text_decay(rates) if of_text else initial_decay(rates, rates // num_heads, position)
        self.mix = TokenShiftMix(mix)
        self.decay_lora = LowRank(source_dim, rates, decay_rank, torch.tanh, decay)
        ramp, zigzag = channel_ramp(rates), head_zigzag(rates, rates // num_heads)
        in_context_lr = -0.19 + 0.3 * zigzag + 0.4 * ramp
        self.in_context_lr_lora = LowRank(source_dim, rates, in_context_lr_rank, identity, in_context_lr)
        self.value_lora = None
        if not first_in_group and value_rank > 0:
            share = initial_text_value_share(value_dim) if of_text else initial_value_share(value_dim)
            self.value_lora = LowRank(source_dim, value_dim, value_rank, identity, share)
        # zero would be a trap: the erase term's gradient would stay zero
        self.k_k = None if per_head else nn.Parameter(0.85 - 0.1 * ramp)
        self.k_a = nn.Parameter(torch.full((rates,), 1.02))

    def forward(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        x_w: torch.Tensor,
        x_v: torch.Tensor,
        x_a: torch.Tensor,
        first_value: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        for_state_alone: bool = False,
    ) -> Write:
        """`for_state_alone`: whether nothing but [`final_state`] will be made of the result."""
        value_share = None
        if self.value_lora is not None:
            if first_value is None:
                raise ValueError(
                    "`first_value` is required: this layer mixes the value of the first layer of its group into "
                    "its own (equation 10). Call the layer through its U-Net, or build it with `first_in_group=True`."
                )
            if first_value.shape != value.shape:
                raise ValueError(
                    f"`first_value` must have the shape of this layer's value, {list(value.shape)}, "
                    f"got {list(first_value.shape)}."
                )
            value_share = self.value_lora(x_v)
        return state_writes(
            self.decay_lora(x_w),
            self.in_context_lr_lora(x_a),
            key,
            value,
            self.k_k,
            self.k_a,
            self.num_heads,
            first_value=None if value_share is None else first_value,
            value_share=value_share,
            mask=mask,
            feature_map=self.feature_map,
            channels_may_stay=for_state_alone,
        )


def identity(x: torch.Tensor) -> torch.Tensor:
    return x
