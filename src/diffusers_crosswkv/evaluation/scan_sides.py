"""The recurrence alone: our backends, the naive loop and flash-linear-attention on the same tensors."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from crosswkv_kernels import wkv7

from . import fla_convention
from .kernel_cases import HEAD_DIM, WIDTHS, Case, Estimate, Side, Sides, relative_rms, scan_bytes

Tensors = tuple[torch.Tensor, ...]
LONGEST_LOOP = 128  # tokens; the naive loop is there to show what chunks are for
LONGEST_REFERENCE = 256  # tokens; the reference of longer scans is the chunked backend, in float64 as well


def as_they_are(*tensors: torch.Tensor) -> Tensors:
    return tensors


def run_backend(backend: str, *tensors: torch.Tensor) -> torch.Tensor:
    output, _ = wkv7(*tensors, backend=backend)
    assert output is not None
    return output


class Scan(NamedTuple):
    """One implementation: what it makes of our tensors beforehand, what it does with them, and what it cannot do."""

    run: Callable[..., torch.Tensor]
    prepare: Callable[..., Tensors] = as_they_are
    has_backward: bool = True
    longest: int | None = None
    intermediates: int = 2  # times the minimal bytes, in float32: a guess at the memory that a call needs


SCANS = {
    "triton": Scan(partial(run_backend, "triton")),
    "chunked": Scan(partial(run_backend, "chunked"), intermediates=5),
    "naive loop": Scan(partial(run_backend, "reference"), longest=LONGEST_LOOP, intermediates=40),
    "fla chunk": Scan(fla_convention.chunk, fla_convention.to_fla, intermediates=8),
    "fla recurrent": Scan(fla_convention.recurrent, fla_convention.to_fla, has_backward=False),
}
FLA = ("fla chunk", "fla recurrent")


def make_inputs(
    batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Tensors:
    """r, w, k, v, kappa, a, each `[B, T, H, K]`, in the ranges that a layer gives them; always the same numbers."""
    generator = torch.Generator(device).manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(batch, tokens, heads, head_dim, generator=generator, device=device, dtype=dtype)

    decay = -torch.sigmoid(noise() - 1).mul_(0.6065)
    return noise(), decay, noise(), noise(), F.normalize(noise(), dim=-1), torch.sigmoid(noise())


def scan_names(case: Case) -> list[str]:
    """Implementations that have this direction, and are meant for this length."""
    assert case.tokens is not None
    return [
        name
        for name, scan in SCANS.items()
        if (scan.has_backward or not case.backward) and (scan.longest is None or case.tokens <= scan.longest)
    ]


def scan_estimate(case: Case, name: str, dtype: torch.dtype) -> Estimate:
    size = scan_bytes(case.batch, case.tokens or 0, case.heads, HEAD_DIM, HEAD_DIM, dtype, case.backward)
    memory = size * (1 + SCANS[name].intermediates * max(1, 4 // dtype.itemsize))
    return Estimate(float(case.size), memory)


def scan_sides(case: Case, device: torch.device, dtype: torch.dtype) -> Sides:
    assert case.tokens is not None
    inputs = make_inputs(case.batch, case.tokens, case.heads, HEAD_DIM, dtype, device)
    gradient = inputs[3].flip(1) if case.backward else None
    references: list[list[torch.Tensor]] = []  # made when the first error is asked for

    def error(scan: Scan) -> float:
        if not references:
            references.append(reference_results(inputs, gradient))
        results = pick(run_with_gradients(scan, inputs, gradient))
        return max(relative_rms(*pair) for pair in zip(results, references[0], strict=True))

    def side(name: str) -> Side:
        scan = SCANS[name]
        if name in FLA:
            fla_convention.tune(device, tuple(width // HEAD_DIM for width in WIDTHS), HEAD_DIM, dtype)
        size = scan_bytes(case.batch, case.tokens or 0, case.heads, HEAD_DIM, HEAD_DIM, dtype, case.backward)
        return Side(
            call=make_call(scan, inputs, gradient),
            minimal_bytes=size,
            error=lambda: error(scan),
            error_at=error_at(case),
        )

    return {name: partial(side, name) for name in SCANS}


def make_call(scan: Scan, inputs: Tensors, gradient: torch.Tensor | None) -> Callable[[], object]:
    """Tensors are in the implementation's own convention before the clock starts."""
    prepared = tuple(x.contiguous() for x in scan.prepare(*inputs))
    if gradient is None:
        return torch.inference_mode()(lambda: scan.run(*prepared))
    leaves = tuple(x.detach().requires_grad_() for x in prepared)
    return lambda: torch.autograd.grad(scan.run(*leaves), leaves, gradient)


def run_with_gradients(scan: Scan, inputs: Tensors, gradient: torch.Tensor | None) -> list[torch.Tensor]:
    """The output, and with a gradient of it the gradients of our six tensors; `[B, T, H, K]` each."""
    if gradient is None:
        with torch.no_grad():
            return [scan.run(*scan.prepare(*inputs))]
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    output = scan.run(*scan.prepare(*leaves))
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def pick(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The first batch element, its first and its last head: heads are independent, so a reference needs no more."""
    return [x[:1, :, [0, -1]] for x in tensors]


def reference_results(inputs: Tensors, gradient: torch.Tensor | None) -> list[torch.Tensor]:
    short = inputs[0].shape[1] <= LONGEST_REFERENCE
    scan = Scan(partial(run_backend, "reference" if short else "chunked"))
    picked = tuple(x.double() for x in pick(inputs))
    return run_with_gradients(scan, picked, None if gradient is None else pick([gradient])[0].double())


def error_at(case: Case) -> str:
    assert case.tokens is not None
    reference = "loop" if case.tokens <= LONGEST_REFERENCE else "chunked backend"
    results = "output and gradients, the worst" if case.backward else "output"
    return f"{results}; first of {case.batch} in the batch, 2 of {case.heads} heads, all tokens; float64 {reference}"


def scans_that_cannot_run(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Names of [`SCANS`] that have no chance on this machine, and why."""
    reason = fla_convention.cannot_run(device)
    reasons = {} if reason is None else dict.fromkeys(FLA, reason)
    if device.type == "cpu":
        return reasons | {"triton": "Triton kernels need a GPU; their interpreter on a CPU is no measure"}
    try:
        SCANS["triton"].run(*make_inputs(1, 16, 1, HEAD_DIM, dtype, device))
    except RuntimeError as error:
        reasons["triton"] = str(error)
    return reasons
