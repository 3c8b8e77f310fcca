"""CrossWKV: cross-attention by the state of RWKV-7 (equations 4 to 16 of the paper).

*Cross-attention for State-based model RWKV-7* (Xiao, Li, Lin, 2025) is "the paper" throughout. This file and
`state_writer.py` translate between the single letters of the equations, used by the kernels, and the modules' words.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from crosswkv_kernels import FEATURE_MAPS, PRODUCTS, QUADRATIC, Write, final_state, map_features, wkv7
from torch import nn

from .cpu_inference import project_tokens_last
from .readout_norms import ScanNorm, StateNorm
from .state_writer import LowRank, StateWriter
from .text_scan import turn_backward

FUSIONS = ("state", "paper", "prefix")
DEFAULT_FEATURE_MAPS = {"state": QUADRATIC, "prefix": "silu", "paper": "identity"}
PAPER_GATE_RANK = 128
SOFT_NORM_EPS = 1.0  # of what is read from a text's state: a small read stays small, a large one is bounded


class Projections(Protocol):
    """Who owns the four large projections: a Diffusers `Attention`, or a `CrossWKV` that stands alone."""

    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList


class CrossWKV(nn.Module):
    """Cross-attention of image tokens to text by the state of RWKV-7; equations 4 to 16 of the paper.

    Args:
        hidden_size: width D of the image tokens, and of the projected receptances and keys: H * K, or H * K / 4 with
            `feature_map="quadratic"`.
        cross_attention_dim: width D_q of the text tokens.
        head_dim: K, the features per head of receptances and keys. `hidden_size` must be a multiple of it, or of a
            quarter of it with `feature_map="quadratic"`, which makes four features of every channel; H is the
            quotient.
        fusion: how text and image meet.
            `state`: the text is scanned once into a state, and every image token reads it.
            `prefix`: the image tokens scan on from the text's state.
            `paper`: the image is scanned, text token t is the receptance of image token t (equations 6 and 7).
        value_dim: D_v, the width of the values; a multiple of H, `hidden_size` if None.
        decay_rank, in_context_lr_rank, gate_rank, value_rank: ranks of the LoRAs of equations 8, 9, 9 and 10. With 0
            decay or learning rate are the same for all tokens, no value is mixed in, or, in `state` fusion alone,
            there is no gate. `gate_rank=None` is 0 in `state` fusion, which does not need one
            (`benchmarks/alignment`), and 128 in the others.
        feature_map: what keys and receptances pass through: `quadratic`, products of a head's channels (see
            `map_features` of `crosswkv_kernels`), with one decay and one learning rate per head; `silu`, as in
            DeltaNet (arXiv:2406.06484); or `identity`. None is `quadratic` in `state` fusion, which finds one token
            among many best with it (`benchmarks/alignment`), `silu` in `prefix`, and `identity` in `paper`, as in the
            equations.
        output_norm: normalise what is read, per head (equation 14).
        norm_eps: what the normalisation adds to the variance. None is 1 in `state` fusion: a read that found nothing
            stays small, and one of a text far longer than any in training is bounded; elsewhere `head_dim * 1e-5`.
        bidirectional: the second half of the heads (rounded down) scans the text from its end. Off, what a long text
            says early is forgotten first. No effect in `paper` fusion.
        layer_index: place of this layer in its network, in the order of execution.
        num_layers: number of CrossWKV layers of the network; with `layer_index` it sets the initial values.
        group: layers of one group share the value of their first layer (equation 10).
        first_in_group: whether this is that layer.
        own_projections: build `to_q`, `to_k`, `to_v` and `to_out`. Off where a Diffusers `Attention` has them.

    Raises:
        ValueError: an unknown `fusion`, widths that do not divide, or a rank out of range.
    """

    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList

    def __init__(
        self,
        hidden_size: int,
        cross_attention_dim: int,
        head_dim: int = 64,
        fusion: str = "state",
        *,
        value_dim: int | None = None,
        decay_rank: int = 64,
        in_context_lr_rank: int = 64,
        gate_rank: int | None = None,
        value_rank: int = 16,
        feature_map: str | None = None,
        output_norm: bool = True,
        norm_eps: float | None = None,
        bidirectional: bool = True,
        layer_index: int = 0,
        num_layers: int = 1,
        group: int = 0,
        first_in_group: bool = True,
        own_projections: bool = True,
    ):
        super().__init__()
        value_dim = hidden_size if value_dim is None else value_dim
        self.feature_map = feature_map_of(fusion, feature_map)
        self.num_heads = check_sizes(hidden_size, head_dim, value_dim, self.feature_map)
        gate_rank = (0 if fusion == "state" else PAPER_GATE_RANK) if gate_rank is None else gate_rank
        for name, rank, least in (
            ("decay_rank", decay_rank, 0),
            ("in_context_lr_rank", in_context_lr_rank, 0),
            ("gate_rank", gate_rank, 0 if fusion == "state" else 1),
            ("value_rank", value_rank, 0),
        ):
            if rank < least:
                raise ValueError(f"`{name}` must be at least {least}, got {rank}.")
        if norm_eps is not None and not norm_eps > 0:
            raise ValueError(f"`norm_eps` must be positive, got {norm_eps}; None takes the fusion's own.")
        self.hidden_size, self.cross_attention_dim = hidden_size, cross_attention_dim
        self.head_dim, self.value_dim = head_dim, value_dim
        self.fusion = fusion
        self.backward_heads = self.num_heads // 2 if bidirectional and fusion != "paper" else 0
        self.layer_index, self.group, self.first_in_group = layer_index, group, first_in_group
        self.place_in_block = 0  # among the layers of its transformer block
        self.state_observer: Callable[[torch.Tensor], None] | None = None  # see `observe_states`
        eps = (SOFT_NORM_EPS if fusion == "state" else head_dim * 1e-5) if norm_eps is None else norm_eps
        make_writer = partial(
            StateWriter,
            key_dim=hidden_size,
            value_dim=value_dim,
            num_heads=self.num_heads,
            decay_rank=decay_rank,
            in_context_lr_rank=in_context_lr_rank,
            value_rank=value_rank,
            position=layer_index / max(num_layers - 1, 1),
            first_in_group=first_in_group,
            feature_map=self.feature_map,
        )
        if fusion != "paper":
            self.text_writer = make_writer(cross_attention_dim, of_text=True)
        if fusion != "state":
            self.image_writer = make_writer(hidden_size, of_text=False)
        if fusion == "prefix":
            self.image_to_k = nn.Linear(hidden_size, hidden_size, bias=False)
            self.image_to_v = nn.Linear(hidden_size, value_dim, bias=False)
        self.gate_lora = None
        if gate_rank > 0:
            gate_bias = None if fusion == "paper" else torch.ones(value_dim)
            self.gate_lora = LowRank(hidden_size, value_dim, gate_rank, torch.sigmoid, gate_bias)
        if fusion == "state":
            self.norm: nn.Module = StateNorm(self.num_heads, value_dim, eps, output_norm, self.feature_map)
        else:
            self.norm = ScanNorm(self.num_heads, head_dim, value_dim, eps, output_norm)
        if own_projections:
            for name, (in_features, out_features, bias) in self.projection_sizes().items():
                linear = nn.Linear(in_features, out_features, bias=bias)
                setattr(self, name, nn.ModuleList([linear, nn.Identity()]) if name == "to_out" else linear)

    def projection_sizes(self) -> dict[str, tuple[int, int, bool]]:
        """`{name: (in_features, out_features, bias)}` of the four projections: in `paper`, text and image swap."""
        receptance_dim, written_dim = self.hidden_size, self.cross_attention_dim
        if self.fusion == "paper":
            receptance_dim, written_dim = written_dim, receptance_dim
        return {
            "to_q": (receptance_dim, self.hidden_size, False),
            "to_k": (written_dim, self.hidden_size, False),
            "to_v": (written_dim, self.value_dim, False),
            "to_out": (self.value_dim, self.hidden_size, True),
        }

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        first_value: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The layer alone: image `[B, T, D]`, text `[B, L, D_q]` and its mask `[B, L]` (1 = keep) to `[B, T, D]`.

        `first_value` is needed if the layer was built with `first_in_group=False`: `[B, L, D_v]` in `state` fusion,
        `[B, T, D_v]` (`[B, min(L, T), D_v]` suffices) in `paper`; `prefix` takes the pair of both.

        Raises:
            ValueError: widths or the mask do not fit the layer.
        """
        check_text(encoder_hidden_states, encoder_attention_mask, self.cross_attention_dim)
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"`hidden_states` must be [B, T, D] with D = {self.hidden_size}, got {list(hidden_states.shape)}."
            )
        if len(hidden_states) != len(encoder_hidden_states):
            raise ValueError(
                f"`encoder_hidden_states` must hold one text per image, got {len(encoder_hidden_states)} texts and "
                f"{len(hidden_states)} images."
            )
        read = read_alone(self, self, hidden_states, encoder_hidden_states, encoder_attention_mask, first_value)
        return apply_out(self, read)

    def write_text(
        self,
        projections: Projections,
        text: torch.Tensor,
        previous: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        first_value: torch.Tensor | None = None,
    ) -> tuple[Write, torch.Tensor]:
        """What the text `[B, L, D_q]` writes (`state`, `prefix`), and its value `[B, L, D_v]` before equation 10.

        Ready to be scanned by `final_state`: backward heads have their tokens in reversed order.
        """
        x_w, x_k, x_v, x_a = self.text_writer.mix(text, previous)
        value = projections.to_v(x_v)
        inputs = (projections.to_k(x_k), value, x_w, x_v, x_a, first_value, mask)
        write = self.text_writer(*inputs, for_state_alone=True)
        return turn_backward(write, self.backward_heads), value

    def read(self, projections: Projections, hidden_states: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """`state` fusion: every image token reads the text's state; `[B, T, D]` to `[B, T, D_v]`, before `to_out`.

        Nothing here depends on a token's neighbours: permuting the image tokens permutes the result.
        """
        if self.state_observer is not None:
            self.state_observer(state)
        gate = None if self.gate_lora is None else self.gate_lora(hidden_states)
        channels = project_tokens_last(projections.to_q, hidden_states)
        if channels is not None:  # nobody else has them
            return self.norm(channels, state, gate, overwrite=True)
        return self.norm(projections.to_q(hidden_states), state, gate)

    def receptance(self, projections: Projections, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, H, K]`."""
        return map_features(projections.to_q(x).unflatten(-1, (self.num_heads, -1)), self.feature_map)

    def receptance_of_text(
        self, projections: Projections, text: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`paper` fusion: the receptances `[B, L, H, K]`, masked tokens zero and behind all others."""
        receptance = self.receptance(projections, text)
        if mask is None:
            return receptance
        order = torch.argsort((~mask).byte(), dim=1, stable=True)[:, :, None, None]
        return receptance.masked_fill(~mask[:, :, None, None], 0).take_along_dim(order, dim=1)

    def scan_image(
        self,
        projections: Projections,
        hidden_states: torch.Tensor,
        *,
        receptance: torch.Tensor | None = None,
        initial_state: torch.Tensor | None = None,
        first_value: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`paper` (with the text's receptance) and `prefix` (from the text's state): the image is scanned.

        Returns what is read, `[B, T, D_v]` before `to_out`, and the image's value before equation 10, `[B, R, D_v]`.
        In `paper` the scan stops after R = min(L, T) tokens: behind them the receptance is zero (equation 6), and they
        read zero.
        """
        x_w, x_k, x_v, x_a, x_g = self.image_writer.mix(hidden_states)
        to_k: nn.Module
        to_v: nn.Module
        if receptance is None:
            receptance = self.receptance(projections, hidden_states)
            to_k, to_v = self.image_to_k, self.image_to_v
        else:
            to_k, to_v = projections.to_k, projections.to_v
        rows = min(receptance.shape[1], hidden_states.shape[1])
        receptance, x_w, x_k, x_v, x_a = (x[:, :rows] for x in (receptance, x_w, x_k, x_v, x_a))
        value = to_v(x_v)
        first_value = None if first_value is None else first_value[:, :rows]
        write = self.image_writer(to_k(x_k), value, x_w, x_v, x_a, first_value)
        observer = self.state_observer
        output, state = wkv7(receptance, *write, initial_state=initial_state, output_final_state=observer is not None)
        if observer is not None:
            assert state is not None
            observer(state)
        assert self.gate_lora is not None
        return self.norm(output, receptance, write.keys, write.v, self.gate_lora(x_g)), value


def read_alone(
    layer: CrossWKV,
    projections: Projections,
    hidden_states: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor | None,
    first_value: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """One layer from text tokens to what is read, outside a U-Net that prepares the text of all layers at once."""
    if mask is not None:
        mask = mask.bool()
    text_value: torch.Tensor | None
    image_value: torch.Tensor | None
    if isinstance(first_value, tuple):
        text_value, image_value = first_value
    else:
        text_value, image_value = first_value, None if layer.fusion == "prefix" else first_value
    if layer.fusion == "paper":
        receptance = layer.receptance_of_text(projections, text, mask)
        return layer.scan_image(projections, hidden_states, receptance=receptance, first_value=image_value)[0]
    previous, _ = previous_tokens(text, mask)
    write, _ = layer.write_text(projections, text, previous, mask, text_value)
    state = final_state(write)
    if layer.fusion == "state":
        return layer.read(projections, hidden_states, state)
    return layer.scan_image(projections, hidden_states, initial_state=state, first_value=image_value)[0]


def apply_out(projections: Projections, x: torch.Tensor) -> torch.Tensor:
    for layer in projections.to_out:
        x = layer(x)
    return x


def previous_tokens(
    text: torch.Tensor, mask: torch.Tensor | None, last_token: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands before each token `[B, L, D_q]` if masked tokens are deleted, and the last kept token `[B, D_q]`.

    `last_token` is the last token of the text that this one continues; zeros stand before a first token.
    """
    start = torch.zeros_like(text[:, 0]) if last_token is None else last_token.to(text)
    sequence = torch.cat((start[:, None], text), dim=1)  # [B, 1 + L, D_q]
    if mask is None:
        return sequence[:, :-1], sequence[:, -1]
    places = torch.arange(1, sequence.shape[1], device=text.device) * mask  # 0 where masked
    latest = F.pad(places.cummax(dim=1).values, (1, 0))[:, :, None]  # [B, 1 + L, 1], the latest kept place
    return sequence.take_along_dim(latest[:, :-1], dim=1), sequence.take_along_dim(latest[:, -1:], dim=1)[:, 0]


def feature_map_of(fusion: str, feature_map: str | None) -> str:
    """The fusion's own if None."""
    if fusion not in FUSIONS:
        raise ValueError(f"`fusion` must be one of {', '.join(FUSIONS)}, got {fusion!r}.")
    if feature_map not in (None, *FEATURE_MAPS):
        raise ValueError(f"`feature_map` must be one of {', '.join(FEATURE_MAPS)} or None, got {feature_map!r}.")
    return feature_map or DEFAULT_FEATURE_MAPS[fusion]


def check_sizes(hidden_size: int, head_dim: int, value_dim: int, feature_map: str) -> int:
    """H, the number of heads."""
    if head_dim < 1:
        raise ValueError(f"`head_dim` must be positive, got {head_dim}.")
    if feature_map == QUADRATIC and head_dim % PRODUCTS:
        raise ValueError(
            f"`head_dim` must be a multiple of {PRODUCTS} with `feature_map='quadratic'`, which makes {PRODUCTS} "
            f"features of every channel, got {head_dim}; {max(head_dim // PRODUCTS, 1) * PRODUCTS} would do."
        )
    channels = head_dim // PRODUCTS if feature_map == QUADRATIC else head_dim
    if hidden_size % channels:
        of = "" if channels == head_dim else f" / {PRODUCTS} (`feature_map={feature_map!r}`)"
        widths = [n for n in range(1, min(hidden_size, 128) + 1) if hidden_size % n == 0][-6:]
        raise ValueError(
            f"`head_dim`{of} must divide `hidden_size`, got {head_dim} and {hidden_size}; "
            f"choose one of {[n * (head_dim // channels) for n in widths]}."
        )
    num_heads = hidden_size // channels
    if value_dim < 1 or value_dim % num_heads:
        raise ValueError(
            f"`value_dim` must be a multiple of the number of heads, got {value_dim} and {num_heads} heads "
            f"(`hidden_size` {hidden_size} / {channels}); {num_heads * max(value_dim // num_heads, 1)} would do."
        )
    return num_heads


def check_text(text: torch.Tensor, mask: torch.Tensor | None, cross_attention_dim: int) -> None:
    """Shapes of text tokens `[B, L, D_q]` and their mask `[B, L]`, L >= 1."""
    if not isinstance(text, torch.Tensor):
        raise ValueError(f"`encoder_hidden_states` must be text tokens [B, L, D_q], got {type(text).__name__}.")
    if text.ndim != 3 or text.shape[1] < 1 or text.shape[-1] != cross_attention_dim:
        raise ValueError(
            f"`encoder_hidden_states` must be [B, L, D_q] with L >= 1 and D_q = cross_attention_dim = "
            f"{cross_attention_dim}, got {list(text.shape)}; is this the text encoder that the model was made for?"
        )
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape != text.shape[:2]):
        got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"`encoder_attention_mask` must be [B, L] = {list(text.shape[:2])} like the text, got {got}.")
