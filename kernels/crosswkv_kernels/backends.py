"""Which version of an operator runs: its Triton kernels, plain PyTorch or, for the recurrence, the reference."""

import torch

try:
    from . import triton_launch
except ImportError:  # no Triton for this system, as on macOS
    triton_launch = None  # type: ignore[assignment]

BACKENDS = ("auto", "triton", "chunked")
SCAN_BACKENDS = (*BACKENDS, "reference")
SCAN_MODES = ("auto", "chunk", "recurrent")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD = 128
OLDEST_NVIDIA = (8, 0)  # before it, tensor cores have neither tf32 nor bfloat16


def takes_triton(backend: str, tensors: tuple[torch.Tensor | None, ...], widths: tuple[int, ...] = ()) -> bool:
    """Whether a call with these tensors and head widths runs in Triton; `auto` takes it on GPUs, where it can.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: Triton was asked for and cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "chunked":
        return False
    present = [x for x in tensors if x is not None]
    obstacle = find_obstacle(present, widths)
    if backend == "triton" and obstacle:
        raise RuntimeError(f"`backend='triton'` was asked for, but {obstacle}; or use backend='auto' or 'chunked'.")
    on_gpu = triton_launch is not None and present[0].device.type in triton_launch.DEVICES
    return backend == "triton" or (on_gpu and obstacle is None)


def find_obstacle(tensors: list[torch.Tensor], widths: tuple[int, ...]) -> str | None:
    """Why the kernels cannot run and what would help, or None if they can."""
    device = tensors[0].device
    if triton_launch is None:
        return "triton cannot be imported: install it (Linux only)"
    if not triton_launch.can_run(device):
        return (
            f"its kernels do not run on the device {str(device)!r}: move the tensors to a GPU, or set "
            "TRITON_INTERPRET=1 before the first import to run them in Triton's interpreter, slowly"
        )
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < OLDEST_NVIDIA:
        return (
            f"its kernels need compute capability 8.0 (Ampere) or newer, got {torch.cuda.get_device_name(device)}: "
            "use another GPU"
        )
    for x in tensors:
        if x.is_floating_point() and x.dtype not in TRITON_DTYPES:
            return f"its kernels take float32, bfloat16 and float16, got {x.dtype}: convert the tensors"
    if widths and max(widths) > WIDEST_HEAD:
        return f"its kernels take heads of at most {WIDEST_HEAD} channels, got {max(widths)}: choose narrower heads"
    return None


def choose_scan_backend(mode: str, backend: str, tensors: tuple[torch.Tensor | None, ...], widths: tuple) -> str:
    """`triton`, `chunked` or `reference`.

    Raises:
        ValueError: an unknown mode or backend, or two that exclude each other.
        RuntimeError: Triton was asked for and cannot run.
    """
    if mode not in SCAN_MODES:
        raise ValueError(f"`mode` must be one of {', '.join(SCAN_MODES)}, got {mode!r}.")
    if backend not in SCAN_BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(SCAN_BACKENDS)}, got {backend!r}.")
    if (mode, backend) in (("recurrent", "chunked"), ("chunk", "reference")):
        raise ValueError(
            f"`backend={backend!r}` has no mode {mode!r}: 'chunked' works in chunks, 'reference' token by token; "
            "leave one of the two at 'auto'."
        )
    if backend != "reference" and takes_triton(backend, tensors, widths):
        return "triton"
    if backend == "auto":
        return "reference" if mode == "recurrent" else "chunked"
    return backend
