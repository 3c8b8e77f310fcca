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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

DISTRIBUTION = "flash-linear-attention"
LAYER_OPTIONS = {"safe_gate": True, "lower_bound": -math.exp(-0.5), "chunk_size": 64}  # those of its RWKV-7 layer
TUNED_SHAPE = (2, 2048)  # B, T
TUNING_SECONDS = 150.0


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
        return f"{DISTRIBUTION} is not installed; `pip install {DISTRIBUTION}` brings it"
    if device.type == "cpu":
        return f"{DISTRIBUTION} has no CPU path"
    try:
        chunk_function()
    except ImportError as error:
        return f"{DISTRIBUTION} {version()} cannot be imported: {error}"
    return None


def tune(device: torch.device, heads: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> None:
    """Let fla's autotuner choose, once, at one shape per number of heads; it keeps its choice for other lengths.

    Raises:
        TimeoutError: it took more than `TUNING_SECONDS`, in this call or an earlier one.
    """
    if not choose_in_time(device, heads, head_dim, dtype):
        raise TimeoutError(
            f"{DISTRIBUTION}'s autotuner was not done after {TUNING_SECONDS:.0f} s; call again to go on: what it has "
            "compiled is kept in Triton's cache"
        )


@functools.cache
def choose_in_time(device: torch.device, heads: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> bool:
    """Hundreds of configurations are compiled, in as many processes as there are cores, and then timed in this one."""
    deadline = time.monotonic() + TUNING_SECONDS
    processes = start_compiling(device, heads, head_dim, dtype)
    try:
        for process in processes:
            process.wait(deadline - time.monotonic())
        with timing_until(deadline):
            call_once(device, heads, head_dim, dtype)
    except (subprocess.TimeoutExpired, TimeoutError):
        return False
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return True


def start_compiling(
    device: torch.device, heads: Sequence[int], head_dim: int, dtype: torch.dtype
) -> list[subprocess.Popen]:
    """A process for each core, which meet in Triton's cache; none for one, whose untimed choice would stay there."""
    count = min(os.cpu_count() or 1, 16)
    code = f"import json, sys; from {__name__} import tune_part; tune_part(*json.loads(sys.argv[1]))"
    processes = []
    for part in range(count) if count > 1 else ():
        given = json.dumps([str(device), list(heads), head_dim, str(dtype), part, count])
        command = [sys.executable, "-c", code, given]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return processes


@contextmanager
def timing_until(deadline: float) -> Iterator[None]:
    """Inside, Triton's autotuners raise TimeoutError in the place of timing a configuration later than that."""
    from triton.runtime.autotuner import Autotuner

    bench = Autotuner._bench

    def bench_in_time(self: Any, *arguments: Any, **options: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError
        return bench(self, *arguments, **options)

    Autotuner._bench = bench_in_time
    try:
        yield
    finally:
        Autotuner._bench = bench


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
