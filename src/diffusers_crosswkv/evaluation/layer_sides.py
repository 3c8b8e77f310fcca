"""Softmax cross-attention as Stable Diffusion has it against CrossWKV that reads a prompt state, and their parts."""

import copy
import functools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from crosswkv_kernels import final_state
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from ..models.attention_processor import FirstValues, PreparedText
from ..models.crosswkv import previous_tokens
from ..models.crosswkv_layers import install_crosswkv
from ..models.readout_norms import StateNorm
from .kernel_cases import (
    CROSSWKV_LAYERS,
    HEAD_DIM,
    STOCK_HEADS,
    TEXT_DIM,
    WIDTHS,
    Case,
    Estimate,
    Side,
    Sides,
    relative_rms,
    tensor_bytes,
)

COMPARED_TOKENS = 256  # image tokens are independent of each other, so a reference needs no more
OURS = CROSSWKV_LAYERS["crosswkv"]
PERTURBATION = 0.02  # a fresh layer's gate is the same for all tokens: weights are moved away from that


@functools.lru_cache(maxsize=3 * len(WIDTHS))
def make_attention(width: int, device: torch.device, dtype: torch.dtype, feature_map: str | None = None) -> Attention:
    """Stable Diffusion 1.5's cross-attention of one width, or with a feature map CrossWKV in its place."""
    heads = {"heads": STOCK_HEADS, "dim_head": width // STOCK_HEADS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attn = Attention(width, TEXT_DIM, **heads, processor=AttnProcessor2_0())
        if feature_map is not None:
            install_crosswkv(attn, None, {"head_dim": HEAD_DIM, "fusion": "state", "feature_map": feature_map})
        for parameter in attn.parameters():
            parameter.data += PERTURBATION * torch.randn_like(parameter)
    return attn.to(device, dtype).eval().requires_grad_(False)


def make_tokens(batch: int, tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(tokens)
    return torch.randn(batch, tokens, width, generator=generator, device=device, dtype=dtype)


def parameter_bytes(module: nn.Module) -> int:
    return tensor_bytes(*module.parameters())


def error_of_tokens(call: Callable[[], object], reference: Callable[[], torch.Tensor]) -> float:
    """Of the first image tokens `[1, COMPARED_TOKENS, D]` of the first batch element."""
    with torch.inference_mode():
        result = call()
        assert isinstance(result, torch.Tensor)
        return relative_rms(result[:1, :COMPARED_TOKENS], reference())


def error_at(case: Case) -> str:
    tokens = min(case.tokens or 0, COMPARED_TOKENS)
    return f"output; first of {case.batch} in the batch, first {tokens} of {case.tokens} image tokens; same in float64"


def layer_estimate(case: Case, name: str, dtype: torch.dtype) -> Estimate:
    """Of `layer`, `attention` and `text`."""
    tokens, length = case.tokens or 0, case.text_tokens or 0
    of_text, of_image, reading = 2 * length * TEXT_DIM, 2 * tokens * case.width, 2 * tokens * HEAD_DIM
    multiplied = {
        "softmax": of_text + of_image + 2 * tokens * length,
        **dict.fromkeys(CROSSWKV_LAYERS, of_image + reading),
        "sdpa": 2 * tokens * length,
    }.get(name, of_text if case.kind == "text" else reading)
    copies = 60 if case.kind == "text" else 10  # a guess at the intermediate tensors of the width of a token
    return Estimate(float(case.batch * case.width * multiplied), copies * case.size * dtype.itemsize)


def layer_sides(case: Case, device: torch.device, dtype: torch.dtype) -> Sides:
    """One step of denoising: the stock layer projects its text every time, ours reads a state made beforehand."""
    assert case.tokens is not None and case.text_tokens is not None
    hidden_states = make_tokens(case.batch, case.tokens, case.width, device, dtype)
    text = make_tokens(case.batch, case.text_tokens, TEXT_DIM, device, dtype)
    return {
        "softmax": partial(softmax_layer, case, hidden_states, text),
        **{
            name: partial(crosswkv_layer, case, hidden_states, text, feature_map)
            for name, feature_map in CROSSWKV_LAYERS.items()
        },
    }


def softmax_layer(case: Case, hidden_states: torch.Tensor, text: torch.Tensor) -> Side:
    attn = make_attention(case.width, text.device, text.dtype)
    call = torch.inference_mode()(lambda: attn(hidden_states, text))

    def reference() -> torch.Tensor:
        return copy.deepcopy(attn).double()(hidden_states[:1, :COMPARED_TOKENS].double(), text[:1].double())

    return Side(
        call=call,
        minimal_bytes=tensor_bytes(hidden_states, hidden_states, text) + parameter_bytes(attn),
        error=lambda: error_of_tokens(call, reference),
        error_at=error_at(case),
    )


def crosswkv_layer(case: Case, hidden_states: torch.Tensor, text: torch.Tensor, feature_map: str) -> Side:
    attn = make_attention(case.width, text.device, text.dtype, feature_map)
    state = text_state(attn, text)
    call = torch.inference_mode()(lambda: attn(hidden_states, PreparedText((state,), (), FirstValues())))

    def reference() -> torch.Tensor:
        prepared = PreparedText((state[:1].double(),), (), FirstValues())
        return copy.deepcopy(attn).double()(hidden_states[:1, :COMPARED_TOKENS].double(), prepared)

    used = [attn.to_q, attn.to_out, attn.crosswkv.norm]
    return Side(
        call=call,
        minimal_bytes=tensor_bytes(hidden_states, hidden_states, state) + sum(map(parameter_bytes, used)),
        error=lambda: error_of_tokens(call, reference),
        error_at=error_at(case),
    )


@torch.inference_mode()
def text_state(attn: Attention, text: torch.Tensor) -> torch.Tensor:
    """`[B, H, V, K]` of a text `[B, L, D_q]`."""
    write, _ = attn.crosswkv.write_text(attn, text, previous_tokens(text, None)[0])
    return final_state(write)


def attention_sides(case: Case, device: torch.device, dtype: torch.dtype) -> Sides:
    """The layers without their projections."""
    assert case.tokens is not None and case.text_tokens is not None
    sizes = (case.tokens, case.text_tokens, case.text_tokens)
    q, k, v = (make_tokens(case.batch, size, case.width, device, dtype) for size in sizes)
    norm = make_attention(case.width, device, dtype, OURS).crosswkv.norm
    state = make_tokens(case.batch, case.width, HEAD_DIM, device, torch.float32)
    state = state.unflatten(1, (norm.num_heads, -1))
    return {"sdpa": partial(sdpa, case, q, k, v), "state readout": partial(readout, case, norm, q, state)}


def sdpa(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Side:
    """Softmax attention of `q` `[B, T, D]` to `[B, L, D]`, in Stable Diffusion's heads."""

    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        heads = [x.unflatten(-1, (STOCK_HEADS, -1)).transpose(1, 2) for x in tensors]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)

    call = torch.inference_mode()(lambda: attend(q, k, v))
    return Side(
        call=call,
        minimal_bytes=tensor_bytes(q, q, k, v),
        error=lambda: error_of_tokens(
            call, lambda: attend(q[:1, :COMPARED_TOKENS].double(), k[:1].double(), v[:1].double())
        ),
        error_at=error_at(case),
    )


def readout(case: Case, norm: StateNorm, channels: torch.Tensor, state: torch.Tensor) -> Side:
    """`channels` `[B, T, D]` read `state` `[B, H, V, K]`: feature map, read and normalisation."""
    call = torch.inference_mode()(lambda: norm(channels, state, None))

    def reference() -> torch.Tensor:
        some = channels[:1, :COMPARED_TOKENS].double()
        return copy.deepcopy(norm).double()(some, state[:1].double(), None)

    return Side(
        call=call,
        minimal_bytes=tensor_bytes(channels, channels, state) + parameter_bytes(norm),
        error=lambda: error_of_tokens(call, reference),
        error_at=error_at(case),
    )


def text_sides(case: Case, device: torch.device, dtype: torch.dtype) -> Sides:
    """What a prompt costs once per layer: its projections, all that is computed per token, and the scan."""
    assert case.text_tokens is not None
    attn = make_attention(case.width, device, dtype, OURS)
    text = make_tokens(case.batch, case.text_tokens, TEXT_DIM, device, dtype)
    with torch.inference_mode():
        previous = previous_tokens(text, None)[0]
        write, value = attn.crosswkv.write_text(attn, text, previous)
    scan = torch.inference_mode()(lambda: final_state(write))

    def error() -> float:
        with torch.inference_mode():
            return relative_rms(scan(), final_state(type(write)(*(x.double() for x in write))))

    def side(call: Callable[[], object], size: int, of_scan: bool = False) -> Callable[[], Side]:
        at = "state, all of it; float64 chunked backend" if of_scan else ""
        return lambda: Side(torch.inference_mode()(call), size, error if of_scan else None, at)

    projected = tensor_bytes(text, value, value)
    written = tensor_bytes(text, *write)
    state = case.batch * case.width * HEAD_DIM * 4
    return {
        "projections": side(
            lambda: (attn.to_k(text), attn.to_v(text)),
            projected + parameter_bytes(attn.to_k) + parameter_bytes(attn.to_v),
        ),
        "projections, mixes, LoRAs": side(
            lambda: attn.crosswkv.write_text(attn, text, previous),
            written + sum(map(parameter_bytes, (attn.to_k, attn.to_v, attn.crosswkv.text_writer))),
        ),
        "scan": side(scan, tensor_bytes(*write) + state, of_scan=True),
    }
