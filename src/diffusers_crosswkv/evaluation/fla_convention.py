"""flash-linear-attention's RWKV-7 kernels, called with our tensors.

They take `a = -kappa` and `b = kappa * a` where `wkv7` takes `kappa` and `a`, and their state is `[B, H, K, V]`.
"""

import functools
import importlib.metadata
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

DISTRIBUTION = "flash-linear-attention"
LAYER_OPTIONS = {"safe_gate": True, "lower_bound": -math.exp(-0.5), "chunk_size": 64}  # those of its RWKV-7 layer
TUNED_SHAPE = (2, 2048)  # B, T


def to_fla(r, w, k, v, kappa, a) -> tuple[torch.Tensor, ...]:
    """Arguments of `wkv7`, `[B, T, H, K]`, as fla's functions take them: r, w, k, v, a, b."""
    return r, w, k, v, -kappa, kappa * a


def chunk(*arguments: torch.Tensor) -> torch.Tensor:
    """`chunk_rwkv7` with the options of fla's own layer, as far as this version has them."""
    function, options = chunk_function()
    return function(*arguments, scale=1.0, **options)[0]


def recurrent(*arguments: torch.Tensor) -> torch.Tensor:
    """`fused_recurrent_rwkv7`, which has no backward."""
    from fla.ops.rwkv7 import fused_recurrent_rwkv7

    return fused_recurrent_rwkv7(*arguments, scale=1.0, output_final_state=False)[0]


@functools.cache
def chunk_function() -> tuple[Callable, dict[str, object]]:
    from fla.ops.rwkv7 import chunk_rwkv7

    known = inspect.signature(chunk_rwkv7).parameters
    return chunk_rwkv7, {name: value for name, value in LAYER_OPTIONS.items() if name in known}


def version() -> str | None:
    """Of the installed fla, if any."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def cannot_run(device: torch.device) -> str | None:
    """Why fla's kernels cannot run on this device; None if they can."""
    if version() is None:
        return f"{DISTRIBUTION} is not installed"
    if device.type == "cpu":
        return f"{DISTRIBUTION} has no CPU path"
    try:
        chunk_function()
    except ImportError as error:
        return f"{DISTRIBUTION} {version()} cannot be imported: {error}"
    return None


@functools.cache
def tune(device: torch.device, heads: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> None:
    """Let fla's autotuner choose, once, at one shape per number of heads; it keeps its choice for other lengths.

    Hundreds of configurations are compiled, in as many processes as there are cores; they meet in Triton's cache.
    """
    count = min(os.cpu_count() or 1, 16)
    code = f"import json, sys; from {__name__} import tune_part; tune_part(*json.loads(sys.argv[1]))"
    processes = []
    for part in range(count) if count > 1 else ():  # one process would leave its untimed choice in Triton's cache
        given = json.dumps([str(device), list(heads), head_dim, str(dtype), part, count])
        command = [sys.executable, "-c", code, given]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for process in processes:
        process.wait()
    call_once(device, heads, head_dim, dtype)


def tune_part(device: str, heads: Sequence[int], head_dim: int, dtype: str, part: int, count: int) -> None:
    """Compile every `count`-th configuration of each kernel, and time none: processes share the device here."""
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs

    def prune_to_part(self: Any, *arguments: Any) -> list:
        configurations = prune(self, *arguments)
        return configurations[part::count] or configurations[:1]

    def run_once(self: Any, *arguments: Any, config: Any, **meta: Any) -> list[float]:
        try:
            self.fn.run(*arguments, **meta, **config.all_kwargs())
        except Exception:  # a configuration that does not fit this device: the autotuner passes it by as well
            return [math.inf] * 3
        return [1.0] * 3

    Autotuner.prune_configs, Autotuner._bench = prune_to_part, run_once
    call_once(torch.device(device), heads, head_dim, getattr(torch, dtype.removeprefix("torch.")))


def call_once(device: torch.device, heads: Sequence[int], head_dim: int, dtype: torch.dtype) -> None:
    """Both functions, forward and the backward that there is."""
    for count in heads:
        shape = (*TUNED_SHAPE, count, head_dim)
        leaves = [torch.full(shape, 0.1, dtype=dtype, device=device, requires_grad=True) for _ in range(6)]
        arguments = to_fla(leaves[0], -leaves[1], *leaves[2:])
        chunk(*arguments).sum().backward()
        recurrent(*(x.detach() for x in arguments))
