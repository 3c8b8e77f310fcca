"""Parameters and floating point operations of a U-Net, counted without running it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..evaluation.kernel_rows import Row
from ..evaluation.prompt_length import SOFTMAX, UNets
from ..models import PromptState
from .pipeline_sides import STATE, VAE_FACTOR

META = torch.device("meta")
BATCH_SIZE = 2  # one image with guidance


@dataclass(frozen=True)
class Flops:
    """Of one call, and the part of it that cross-attention has; a multiplication with an addition counts 2."""

    total: int
    cross_attention: int


class FlopCount:
    """Counts on the meta device, for any size: there nothing is computed, and all is products of plain PyTorch.

    So nothing is missing that a counter does not know, as CPU's fused attention, or a Triton kernel of ours.
    """

    def __init__(self, unets: UNets):
        self.unets = UNets.make(unets.name, META, torch.float32)
        example = unets.crosswkv.encode_prompt(
            torch.zeros(BATCH_SIZE, 1, unets.crosswkv.config.cross_attention_dim).to(unets.crosswkv.conv_in.weight)
        )
        self.state: PromptState = example.to(META)  # every prompt's state has this shape
        self.state.accept(self.unets.crosswkv)

    def step(self, side: str, size: int, length: int) -> Flops:
        """Of both halves of a guided step; of `state` with the prompt's state given."""
        if side == STATE:
            kwargs = {"cross_attention_kwargs": {"prompt_state": self.state}}
            return self._count(side, size, None, kwargs)
        return self._count(side, size, length, {})

    def scan(self, length: int) -> int:
        """Of what `state` does once per prompt and negative prompt."""
        size = VAE_FACTOR * self.unets.crosswkv.config.sample_size
        with_scan = self._count(STATE, size, length, {}).total
        return with_scan - self.step(STATE, size, length).total

    def _count(self, side: str, size: int, length: int | None, kwargs: dict) -> Flops:
        unet = self.unets.crosswkv if side == STATE else self.unets.softmax
        latents = torch.empty(BATCH_SIZE, unet.config.in_channels, *[size // VAE_FACTOR] * 2, device=META)
        text = None
        if length is not None:
            text = torch.empty(BATCH_SIZE, length, unet.config.cross_attention_dim, device=META)
        timestep = torch.tensor(500, device=META)
        return count(lambda: unet(latents, timestep, text, **kwargs))


def count(call: Callable[[], object]) -> Flops:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    by_module = {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}
    return Flops(counter.get_total_flops(), sum(x for name, x in by_module.items() if name.endswith(".attn2")))


def papers_formula(unets: UNets, size: int) -> int:
    """13 T H N, the paper's count for its layer, over all layers and both halves of a guided step.

    T are image tokens, H heads, N their width, H N the layer's. It has N where the products with a state `N x N` have
    N squared.
    """
    total, side = 0, size // VAE_FACTOR
    for block, attentions in unets.crosswkv._crosswkv_blocks:
        level = level_of(unets, block)
        for attn in attentions:
            total += 13 * (side // 2**level) ** 2 * attn.crosswkv.hidden_size
    return BATCH_SIZE * total


def level_of(unets: UNets, block: torch.nn.Module) -> int:
    """0 where a block works at full resolution."""
    unet = unets.crosswkv
    levels = len(unet.down_blocks)
    places = {id(x): i for i, x in enumerate(unet.down_blocks)} | {id(unet.mid_block): levels - 1}
    places |= {id(x): levels - 1 - i for i, x in enumerate(unet.up_blocks)}
    return places[id(block)]


def parameters(unets: UNets) -> dict[str, int]:
    return {SOFTMAX: unets.softmax.num_parameters(), STATE: unets.crosswkv.num_parameters()}


def flop_row(flops: FlopCount, side: str, size: int, length: int) -> Row:
    """What a row of a step says about its work."""
    counted = flops.step(side, size, length)
    row: Row = {"flops": counted.total, "cross_attention_flops": counted.cross_attention}
    if side == STATE:
        row["papers_formula"] = papers_formula(flops.unets, size)
    return row | {"parameters": parameters(flops.unets)[side]}
