"""Processes and shards: what Accelerate is told, and whole tensors out of sharded ones and back."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from .config import TrainingConfig
from .optimizers import SHARDABLE
from .zero import configure_zero

PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=3))  # the main process may have data to fetch and look at


def make_accelerator(config: TrainingConfig, **options) -> Accelerator:
    """Accelerate as `accelerate launch` configured it, with the run's precision; `options` are passed on.

    Accelerate shards (FSDP) on accelerators alone; asked for it by `ACCELERATE_USE_FSDP` on several CPU processes, we
    make it shard there too: that is slow, and exact, so it shows what sharding does without a GPU.

    Raises:
        ValueError: the precision or the number of processes does not fit.
    """
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=config.weights == "all" and config.train_text_encoder
    )
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("`mixed_precision` fp16 needs a GPU, and there is none; use bf16 or no.")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[unused, PATIENCE], **options)
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of processes times `gradient_accumulation_steps`, got "
            f"{config.batch_size} and {accelerator.num_processes} * {config.gradient_accumulation_steps}; "
            f"{-(-config.batch_size // parts) * parts} would do."
        )
    configure_zero(accelerator, config)
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wanted and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # reads what the launcher has set
        accelerator.state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("Sharded training needs `fsdp_version: 2` in the Accelerate configuration, got 1.")
    if is_sharded(accelerator):  # weights and times stay float32 as everywhere: autocast decides what is rounded
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if is_sharded(accelerator) and config.optimizer not in SHARDABLE:
        raise ValueError(
            f"Sharded training needs `optimizer` {' or '.join(SHARDABLE)}, got {config.optimizer}; choose that one, "
            "or train without FSDP."
        )
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def local(x: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process has: all of it unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every process; a collective operation if it is sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def to_main(accelerator: Accelerator, x: torch.Tensor) -> torch.Tensor:
    """A whole tensor in the main memory of the main process; the others, which take part, get nothing."""
    x = whole(x).detach()
    return x.cpu() if accelerator.is_main_process else x.new_empty(0)


def whole_from_local(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """All of what each process has a part of, cut as `like` is."""
    if not isinstance(like, DTensor):
        return part
    sharded = DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def cut_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on every process, on the device of `like` and sharded as it is."""
    x = x.to(like.device)
    return distribute_tensor(x, like.device_mesh, like.placements) if isinstance(like, DTensor) else x


def from_main(accelerator: Accelerator, value):
    """A JSON value, or None, of the main process, on all."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def tensors_from_main(accelerator: Accelerator, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Tensors that the main process has read, on all; others pass None."""
    if accelerator.num_processes == 1:
        assert tensors is not None
        return tensors
    described = None
    if tensors is not None:
        described = {name: (list(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in tensors.items()}
    received = {}
    for name, (shape, dtype) in from_main(accelerator, described).items():
        x = tensors[name] if tensors else torch.empty(shape, dtype=getattr(torch, dtype))
        x = x.to(accelerator.device).contiguous()
        torch.distributed.broadcast(x, src=0)
        received[name] = x.cpu()
    return received


def sums_over_processes(accelerator: Accelerator, values: Iterable[float]) -> list[float]:
    """Of each number, the sum over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    x = torch.tensor(list(values), dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(x)
    return x.tolist()


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it holds on one process at least."""
    return sums_over_processes(accelerator, [flag])[0] > 0
