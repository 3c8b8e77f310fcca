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
        updates: how often a token is written into the state, as in DeltaProduct (arXiv:2502.10297): it is embedded as
            so many in a row, and the logits are those behind the last. One update swaps two directions; a permutation
            of five may need four.
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
    updates: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("mixer", MIXERS), ("start", STARTS), ("rate_limit", (1, 2))):
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("vocabulary", "classes", "width", "head_dim", "layers", "updates"):
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
        self.embedding = nn.Embedding(config.vocabulary, config.updates * config.width)
        self.start = nn.Parameter(torch.randn(config.width)) if config.starts_with_token else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.behind_tokens(x)))

    @torch.no_grad()
    def trace(self, tokens: torch.Tensor) -> Trace:
        """All that the model holds behind each of the tokens `[B, T]`; the start token is left out."""
        x = self.embed(tokens)
        hidden, states = [self.behind_tokens(x)], []
        for block in self.blocks:
            assert isinstance(block, Block)
            if isinstance(block.mixer, WKV7Mixer):
                states.append(self.behind_tokens(block.mixer.states(block.norm(x))))
            x = block(x)
            hidden.append(self.behind_tokens(x))
        return Trace(hidden, states)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, T]` to `[B, N T, D]` with N updates per token, or `[B, 1 + N T, D]` with a start token."""
        x = self.embedding(tokens).unflatten(-1, (self.config.updates, -1)).flatten(1, 2)
        return x if self.start is None else torch.cat((self.start.expand(len(x), 1, -1), x), dim=1)

    def behind_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """What stands behind the last update of each token: `[B, N T, ...]`, start or not, to `[B, T, ...]`."""
        return x[:, self.config.starts_with_token + self.config.updates - 1 :: self.config.updates]
