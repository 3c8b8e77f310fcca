"""The text's way through all layers of a U-Net before its blocks run: written layer by layer, scanned at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from crosswkv_kernels import Write, final_state
from diffusers.models.attention_processor import Attention
from torch import nn

from .crosswkv import previous_tokens
from .text_scan import pass_earlier_text, start_of_continuation

Blocks = Sequence[tuple[nn.Module, Sequence[Attention]]]  # blocks of a U-Net and their layers, in order of execution


def write_text(
    blocks: Blocks, text: torch.Tensor, mask: torch.Tensor | None, last_token: torch.Tensor | None = None
) -> tuple[list[Write], torch.Tensor]:
    """What the text `[B, L, D_q]` writes into each layer, and its last token `[B, D_q]`.

    It follows `last_token`, if any. Every layer writes where its weights are; the results are where the text is.
    """
    previous, next_last_token = previous_tokens(text, mask, last_token)
    text, previous, mask = without_padding(text, previous, mask)
    first_values: dict[int, torch.Tensor] = {}
    writes = []
    for attn in onloaded_layers(blocks):
        layer, device = attn.crosswkv, device_of(attn, text.device)
        inputs = [None if x is None else x.to(device) for x in (text, previous, mask, first_values.get(layer.group))]
        write, value = layer.write_text(attn, *inputs)
        first_values.setdefault(layer.group, value)
        writes.append(type(write)(*(x.to(text.device) for x in write)))
    return writes, next_last_token


def without_padding(
    text: torch.Tensor, previous: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Cut off at both ends what is masked in the whole batch, for it writes nothing.

    On a CPU alone: a GPU would have to wait for the mask, and a compiler sees no values.
    """
    if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return text, previous, mask
    kept = mask.any(0).nonzero()
    used = slice(kept[0].item(), kept[-1].item() + 1) if len(kept) else slice(1)
    return text[:, used], previous[:, used], mask[:, used]


def scan_layers(
    blocks: Blocks,
    writes: Sequence[Write],
    initial_states: Sequence[torch.Tensor] | None = None,
    transitions: Sequence[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    """The states of all layers, `[B, H, V, K]` each, gone on from `initial_states` of the same shapes.

    `transitions` are those of the text that left the initial states, None if they were not left by a text.

    Heads are independent, so one scan serves all layers whose heads have one size.
    """
    layers = [attn.crosswkv for _, attentions in blocks for attn in attentions]
    scans: dict[tuple[type[Write], int, int], list[int]] = {}
    for i, write in enumerate(writes):
        scans.setdefault((type(write), write.v.shape[-1], write.kappa.shape[-1]), []).append(i)
    states: dict[int, torch.Tensor] = {}
    for (kind, *_), numbers in scans.items():
        joined = kind(*(torch.cat(parts, dim=2) for parts in zip(*(writes[i] for i in numbers), strict=True)))
        start = None
        if initial_states is not None:
            starts = [start_of_continuation(initial_states[i], layers[i].backward_heads) for i in numbers]
            start = torch.cat(starts, dim=1)
        parts = final_state(joined, start).split([layers[i].num_heads for i in numbers], dim=1)
        states |= dict(zip(numbers, parts, strict=True))
    in_order = tuple(states[i] for i in range(len(states)))
    if initial_states is None:
        return in_order
    backward_heads = [layer.backward_heads for layer in layers]
    passed = transitions if transitions is not None else (None,) * len(layers)
    of_layers = zip(in_order, initial_states, backward_heads, passed, strict=True)
    return tuple(pass_earlier_text(*parts) for parts in of_layers)


def text_receptances(blocks: Blocks, text: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """`paper` fusion: what each layer reads the image's state with, `[B, L, H, K]`."""
    receptances = []
    for attn in onloaded_layers(blocks):
        device = device_of(attn, text.device)
        receptance = attn.crosswkv.receptance_of_text(attn, text.to(device), None if mask is None else mask.to(device))
        receptances.append(receptance.to(text.device))
    return tuple(receptances)


def device_of(attn: Attention, default: torch.device) -> torch.device:
    """Where the layer's weights are; `default` while they are offloaded: a hook will fetch them and the input."""
    device = next(attn.to_k.parameters()).device
    return default if device.type == "meta" else device


def onloaded_layers(blocks: Blocks) -> Iterator[Attention]:
    """The layers in the order of execution, each while the group offloading of its block has fetched its weights.

    The text is written before the blocks run: their own hooks fetch nothing yet.
    """
    for block, attentions in blocks:
        with onloaded(block):
            yield from attentions


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Fetch what Diffusers' group offloading has put elsewhere, if `module` leads a group, and put it back."""
    group = offloading_group(module)
    if group is None:
        yield
        return
    group.onload_()
    if group.stream is not None:
        group.stream.synchronize()
    try:
        yield
    finally:
        group.offload_()


def offloading_group(module: nn.Module):
    registry = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    return None if hook is None else hook.group
