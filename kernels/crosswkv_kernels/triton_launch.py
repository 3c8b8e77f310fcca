"""How the Triton kernels are started: on a device, in Triton's interpreter on CPU tensors, or only recorded.

Recorded launches are what `ahead_of_time.py` compiles: the very arguments and configurations that a user's call would
start, for targets that need not be present.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret
DEVICES = ("cuda", "xpu")  # torch calls AMD's GPUs cuda too
POINTER_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    """One kernel as it would be started: argument types in Triton's notation, constants and options."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    divisible: frozenset[str]  # arguments that are multiples of 16, which Triton's compiler is told


class Recorder:
    """Collects launches in the place of running them, as for a GPU of `vendor` (`nvidia` or `amd`)."""

    def __init__(self, vendor: str):
        self.vendor = vendor
        self.launches: list[Launch] = []


_recorder: Recorder | None = None


@contextmanager
def record_launches(vendor: str) -> Iterator[Recorder]:
    """Inside, kernels are recorded, not run; what they would have written stays as it was allocated."""
    global _recorder
    before, _recorder = _recorder, Recorder(vendor)
    try:
        yield _recorder
    finally:
        _recorder = before


def active_recorder() -> Recorder:
    """The recorder of the `record_launches` that this is called in."""
    if _recorder is None:
        raise RuntimeError("Nothing records launches here; call this inside `with record_launches(vendor):`.")
    return _recorder


def can_run(device: torch.device) -> bool:
    """Whether kernels can be started on tensors of this device."""
    return device.type in (*DEVICES, "meta") or INTERPRETED or _recorder is not None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants, num_warps=num_warps)`, on the device of the first tensor."""
    if _recorder is not None:
        _recorder.launches.append(_as_launch(kernel, arguments, constants, num_warps))
        return
    if 0 in grid:
        return
    device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
    with torch.get_device_module(device).device(device) if device.type in DEVICES else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=num_warps)


def dot_precision(*tensors: torch.Tensor | None) -> str:
    """`input_precision` of matrix products: error of at most 5e-3 if an input has 16 bits, 1e-5 if all have 32."""
    vendor = _recorder.vendor if _recorder is not None else "amd" if torch.version.hip else "nvidia"
    if vendor != "nvidia":
        return "ieee"
    return "tf32" if any(x is not None and x.element_size() == 2 for x in tensors) else "tf32x3"


def _as_launch(kernel: Any, arguments: tuple, constants: dict[str, Any], num_warps: int) -> Launch:
    signature, held, divisible = {}, dict(constants), set()
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if value is None or value is True or value is False or (isinstance(value, int) and value == 1):
            held[name] = value  # Triton makes constants of these
        else:
            signature[name] = _type_of(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                divisible.add(name)
    signature |= dict.fromkeys(held, "constexpr")
    return Launch(kernel, {name: signature[name] for name in kernel.arg_names}, held, num_warps, frozenset(divisible))


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTER_TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if abs(value) < 2**31 else "i64"
    return "fp32"
