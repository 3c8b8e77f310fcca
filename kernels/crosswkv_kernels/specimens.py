"""One small call of each operator, forward and backward, so that its kernels can be compiled ahead of time."""

from collections.abc import Iterable
from typing import Any

import torch

from .feature_maps import PRODUCTS, QUADRATIC
from .interface import scan_readout, state_readout, state_writes, token_shift_mix, wkv7
from .triton_launch import Launch, active_recorder

DTYPES = (torch.bfloat16, torch.float32)
BATCH, LENGTH, HEADS = 2, 80, 3
MANY_HEADS = 64  # so many that a program owns all values of its head
IMAGE_LENGTH = 8192  # so long that programs of a backward pass take several blocks each


def elementwise_specimens(
    key_dim: int = 64, value_dim: int = 64, dtypes: Iterable[torch.dtype] = DTYPES
) -> list[Launch]:
    """What the calls of this file launch, for heads of these widths; to be called inside `record_launches`.

    Raises:
        RuntimeError: nothing records launches.
    """
    recorder = active_recorder()
    first = len(recorder.launches)
    for dtype in dtypes:
        mix_specimen(HEADS * key_dim, dtype)
        writes_specimen(key_dim, value_dim, dtype)
        state_readout_specimen(key_dim, value_dim, dtype)
        scan_readout_specimen(key_dim, value_dim, dtype)
        if key_dim % PRODUCTS == 0:
            writes_specimen(key_dim, value_dim, dtype, products=True)
            state_readout_specimen(key_dim, value_dim, dtype, products=True)
    return recorder.launches[first:]


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def mix_specimen(width: int, dtype: torch.dtype) -> None:
    """The mixes of a text, with and without what stands before each token."""
    for previous in (None, tensor(BATCH, LENGTH, width, dtype=dtype)):
        x, mu = tensor(BATCH, LENGTH, width, dtype=dtype), tensor(4, width)
        token_shift_mix(x, mu, previous, backend="triton").sum().backward()


def writes_specimen(K: int, V: int, dtype: torch.dtype, products: bool = False) -> None:
    """A masked text's, with and without a value residual; and those of a first layer without a mask.

    With `products` as in `state` fusion: keys are products of channels, a head has one decay and one rate.
    """
    rates, channels = (HEADS, HEADS * K // PRODUCTS) if products else (HEADS * K, HEADS * K)
    decay, rate = (tensor(BATCH, LENGTH, rates, dtype=dtype) for _ in range(2))
    key = tensor(BATCH, LENGTH, channels, dtype=dtype)
    value, first, share = (tensor(BATCH, LENGTH, HEADS * V, dtype=dtype) for _ in range(3))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    residual = {"first_value": first, "value_share": share}
    cases: tuple[dict[str, Any], ...] = ({"mask": mask, **residual}, {"mask": mask}, {})
    for options in cases:
        inputs = (decay, rate, key, value, None if products else tensor(HEADS * K), tensor(rates))
        feature_map = QUADRATIC if products else "silu"
        write = state_writes(*inputs, num_heads=HEADS, feature_map=feature_map, backend="triton", **options)
        torch.cat([x.flatten() for x in write]).sum().backward()


def state_readout_specimen(K: int, V: int, dtype: torch.dtype, products: bool = False) -> None:
    """With and without norm; with `products` without a gate."""
    channels, feature_map = (K // PRODUCTS, QUADRATIC) if products else (K, "identity")
    for norm in (tensor(HEADS * V), None):
        r, state = tensor(BATCH, IMAGE_LENGTH, HEADS, channels, dtype=dtype), tensor(BATCH, HEADS, V, K)
        gate = None if products else tensor(BATCH, IMAGE_LENGTH, HEADS * V, dtype=dtype)
        state_readout(r, state, norm, norm, gate, feature_map=feature_map, backend="triton").sum().backward()


def scan_readout_specimen(K: int, V: int, dtype: torch.dtype) -> None:
    """With and without norm; the key is float32, as `state_writes` returns it."""
    for norm in (tensor(HEADS * V), None):
        o, v = (tensor(BATCH, LENGTH, HEADS, V, dtype=dtype) for _ in range(2))
        r, k = tensor(BATCH, LENGTH, HEADS, K, dtype=dtype), tensor(BATCH, LENGTH, HEADS, K)
        gate = tensor(BATCH, LENGTH, HEADS * V, dtype=dtype)
        scan_readout(o, r, k, v, tensor(HEADS, K), norm, norm, gate, backend="triton").sum().backward()


def scan_specimens(key_dim: int = 64, value_dim: int = 64, dtypes: Iterable[torch.dtype] = DTYPES) -> list[Launch]:
    """The same for the recurrence: a short text, a long sequence in segments, many heads, and token by token.

    Each reads, as in `prefix` and `paper` fusion, or leaves a state alone, as in `state` fusion. Heads whose keys are
    products of as many channels as their values have, those of `state` fusion, have one decay, one rate and one size
    of keys; others have them once more at the end.

    Raises:
        RuntimeError: nothing records launches.
    """
    recorder = active_recorder()
    first = len(recorder.launches)
    rates = 1 if key_dim == PRODUCTS * value_dim else key_dim
    for dtype in dtypes:
        for reads in (True, False):
            for length, heads in ((LENGTH, HEADS), (IMAGE_LENGTH, HEADS), (LENGTH, MANY_HEADS)):
                scan_specimen(scan_inputs(length, heads, key_dim, value_dim, rates, dtype), reads)
            inputs = scan_inputs(LENGTH, HEADS, key_dim, value_dim, rates, dtype)
            start = tensor(BATCH, HEADS, value_dim, key_dim)
            scan_specimen(inputs, reads, start)
            inference_specimens(inputs, reads, start)
        for length, heads in ((LENGTH, HEADS), (LENGTH, MANY_HEADS)):
            scan_specimen(scan_inputs(length, heads, key_dim, value_dim, 1, dtype), False)
        odd_scan_specimens(dtype)
    return recorder.launches[first:]


def scan_inputs(length: int, heads: int, K: int, V: int, rates: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """r, w, k, v, kappa, a."""
    widths = (K, rates, rates, V, K, rates)
    return [tensor(BATCH, length, heads, width, dtype=dtype) for width in widths]


def scan_specimen(inputs: list[torch.Tensor], reads: bool, start: torch.Tensor | None = None) -> None:
    """In chunks, with gradients of what is returned: output and state, or the state alone."""
    r = inputs[0] if reads else None
    results = wkv7(r, *inputs[1:], initial_state=start, output_final_state=True, mode="chunk", backend="triton")
    torch.stack([x.float().sum() for x in results if x is not None]).sum().backward()


def inference_specimens(inputs: list[torch.Tensor], reads: bool, start: torch.Tensor) -> None:
    """In chunks, of which nothing is kept, and token by token; a first state comes with a last one."""
    r = inputs[0] if reads else None
    with torch.no_grad():
        for mode in ("chunk", "recurrent"):
            for state in (None, start):
                final = state is not None
                wkv7(r, *inputs[1:], initial_state=state, output_final_state=final, mode=mode, backend="triton")


def odd_scan_specimens(dtype: torch.dtype) -> None:
    """What Triton compiles apart: one token, one head, widths and strides that 16 does not divide, far offsets."""
    for shape in ((1, 1, 1, 64), (1, 16, 1, 17)):
        inputs = [torch.zeros(shape, dtype=dtype, requires_grad=True) for _ in range(6)]
        for mode in ("chunk", "recurrent"):
            o, _ = wkv7(*inputs, mode=mode, backend="triton")
            assert o is not None
        wkv7(*inputs, mode="chunk", backend="triton")[0].sum().backward()  # type: ignore[union-attr]
    far = torch.zeros(64, dtype=dtype).as_strided((1, 1, 1, 64), (64, 2**26, 64, 1))  # one token of a long sequence
    wkv7(*[far] * 6, mode="chunk", backend="triton")
