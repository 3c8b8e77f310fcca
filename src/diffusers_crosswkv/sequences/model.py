"""Tokens to logits: embedding, residual blocks of a mixer and an MLP, a linear head."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .softmax_mixer import SoftmaxMixer
from .wkv7_mixer import WKV7Mixer

MIXERS = ("wkv7", "diagonal", "softmax")
STARTS = ("state", "token", "nothing")


@dataclass(frozen=True)
class SequenceConfig:
    """Shape of a [`SequenceModel`].

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits per token.
        width: D, of the residual stream.
        head_dim: K = V, divides `width`.
        layers: number of blocks.
        mixer: `wkv7` (RWKV-7's layer), `diagonal` (the same layer without its delta rule: the state decays per
            channel) or `softmax` (causal attention).
        rate_limit: upper end of the in-context rate of `wkv7`, 1 or 2.
        start: what stands before the first token, so that there is something to follow: a learned `state` per layer,
            a learned `token`, or `nothing`. Softmax has no state: it gets the token.
        output_norm: whether `wkv7` and `diagonal` normalise what they read, per head.
    """

    vocabulary: int
    classes: int
    width: int = 32
    head_dim: int = 16
    layers: int = 1
    mixer: str = "wkv7"
    rate_limit: int = 1
    start: str = "state"
    output_norm: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("mixer", MIXERS), ("start", STARTS), ("rate_limit", (1, 2))):
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("vocabulary", "classes", "width", "head_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.width % self.head_dim:
            raise ValueError(f"`head_dim` must divide `width`, got {self.head_dim} and {self.width}.")

    @property
    def starts_with_token(self) -> bool:
        return self.start == "token" or (self.start == "state" and self.mixer == "softmax")


class Trace(NamedTuple):
    """What linear probes read."""

    hidden: list[torch.Tensor]
    """The residual stream `[B, T, D]`: embeddings, then behind every block."""
    states: list[torch.Tensor]
    """The state behind every token, `[B, T, H, V, K]` for each layer; empty for softmax."""


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`; `[B, T, D]` to `[B, T, D]`."""

    def __init__(self, config: SequenceConfig):
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.mixer: SoftmaxMixer | WKV7Mixer
        if config.mixer == "softmax":
            self.mixer = SoftmaxMixer(width, config.head_dim)
        else:
            self.mixer = WKV7Mixer(
                width,
                config.head_dim,
                rate_limit=config.rate_limit,
                delta_rule=config.mixer == "wkv7",
                learned_start=config.start == "state",
                output_norm=config.output_norm,
            )
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class SequenceModel(nn.Module):
    """Causal: token ids `[B, T]` to logits `[B, T, classes]`; the logits at t follow from the tokens up to t."""

    def __init__(self, config: SequenceConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary + config.starts_with_token, config.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, self.config.starts_with_token :]))

    @torch.no_grad()
    def trace(self, tokens: torch.Tensor) -> Trace:
        """All that the model holds at each of the tokens `[B, T]`; the start token is left out."""
        x, first = self.embed(tokens), int(self.config.starts_with_token)
        hidden, states = [x[:, first:]], []
        for block in self.blocks:
            assert isinstance(block, Block)
            if isinstance(block.mixer, WKV7Mixer):
                states.append(block.mixer.states(block.norm(x))[:, first:])
            x = block(x)
            hidden.append(x[:, first:])
        return Trace(hidden, states)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, T]` to `[B, T, D]`, or `[B, 1 + T, D]` with a start token."""
        if self.config.starts_with_token:
            tokens = nn.functional.pad(tokens, (1, 0), value=self.config.vocabulary)
        return self.embedding(tokens)
