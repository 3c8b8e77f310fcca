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
    divisible_by_16: tuple[str, ...]  # arguments of which Triton compiles a version of their own for this
    num_warps: int
    num_stages: int


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
    return device.type in DEVICES or (INTERPRETED and device.type == "cpu") or _recorder is not None


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, num_stages: int = 1, **constants: Any
) -> None:
    """`kernel[grid](*arguments, **constants)` with these options, on the device of the first tensor."""
    if _recorder is not None:
        _recorder.launches.append(_as_launch(kernel, arguments, constants, num_warps, num_stages))
        return
    if 0 in grid:
        return
    device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
    with torch.get_device_module(device).device(device) if device.type in DEVICES else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages)


def dot_precision(*tensors: torch.Tensor | None) -> str:
    """`input_precision` of matrix products: error of at most 5e-3 if an input has 16 bits, 1e-5 if all have 32."""
    nvidia = _recorder.vendor == "nvidia" if _recorder is not None else not (torch.version.hip or torch.version.xpu)
    if not nvidia:
        return "ieee"
    return "tf32" if any(x is not None and x.element_size() == 2 for x in tensors) else "tf32x3"


def _as_launch(kernel: Any, arguments: tuple, constants: dict[str, Any], num_warps: int, num_stages: int) -> Launch:
    signature, held, divisible = {}, dict(constants), []
    unspecialized = getattr(kernel, "do_not_specialize", ())  # an interpreted kernel has none
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if name in unspecialized:
            signature[name] = _type_of(value)
            continue
        if value is None or value is True or value is False or (isinstance(value, int) and value == 1):
            held[name] = value  # Triton makes constants of these
            continue
        signature[name] = _type_of(value)
        address = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if isinstance(address, int) and address % 16 == 0:
            divisible.append(name)
    signature |= dict.fromkeys(held, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    return Launch(kernel, signature, held, tuple(divisible), num_warps, num_stages)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTER_TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if abs(value) < 2**31 else "i64"
    return "fp32"
