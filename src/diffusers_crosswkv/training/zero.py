"""ZeRO of DeepSpeed, stages 1 and 2: each process keeps a part of the optimizer (1) and of the gradients (2)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, compare_versions
from torch import nn

from .config import TrainingConfig
from .optimizers import load_groups, optimizer_state

STAGES = (1, 2)
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
TRIED = "0.19"  # the oldest DeepSpeed that was; older ones take steps with gradients that are not finite


def is_zero(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure_zero(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Tell DeepSpeed what the run's settings say, if `accelerate launch` asks for it.

    Accelerate has it on accelerators alone; asked for it on several CPU processes, we make it run there too.

    Raises:
        ValueError: what is asked for was not made to work: ZeRO-3, offloading, another optimizer than AdamW, fp16, a
            schedule of DeepSpeed's own, an old DeepSpeed.
    """
    wanted = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if wanted and accelerator.distributed_type == DistributedType.MULTI_CPU:
        plugin = DeepSpeedPlugin()  # reads what the launcher has set
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = plugin
        accelerator.state.distributed_type = DistributedType.DEEPSPEED
    if not is_zero(accelerator):
        return
    settings = accelerator.deepspeed_plugin.deepspeed_config
    check_zero(settings, config)
    for name in ("bf16", "fp16"):  # they would cast the parameters; ours stay float32, and autocast computes
        settings.pop(name, None)
    settings["torch_autocast"] = {
        "enabled": config.mixed_precision == "bf16",
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],  # whose gradients would be exchanged in bfloat16
    }
    share = config.batch_size // accelerator.num_processes
    settings |= {"train_batch_size": config.batch_size, "train_micro_batch_size_per_gpu": share}
    settings |= {"gradient_accumulation_steps": 1, "gradient_clipping": config.max_grad_norm}


def check_zero(settings: dict, config: TrainingConfig) -> None:
    zero = settings["zero_optimization"]
    offload = [(zero.get(f"offload_{what}") or {}).get("device", "none") for what in ("optimizer", "param")]
    for fits, requirement, got in (
        (compare_versions("deepspeed", ">=", TRIED), f"version {TRIED} or later", "an older one"),
        (zero["stage"] in STAGES, "`zero_stage` 1 or 2", zero["stage"]),
        (set(offload) == {"none"}, "optimizer and parameters offloaded to `none`", " and ".join(offload)),
        (config.optimizer == "adamw", "`optimizer` adamw", config.optimizer),
        (config.mixed_precision != "fp16", "`mixed_precision` bf16 or no", "fp16"),
        (not settings.keys() & {"optimizer", "scheduler"}, "a file without optimizer and scheduler", "one with"),
    ):
        if not fits:
            raise ValueError(
                f"Training with DeepSpeed needs {requirement}, got {got}; change that, or shard with FSDP2 instead, "
                "which needs no DeepSpeed and also shards the parameters: "
                "`accelerate launch --config_file scripts/accelerate/fsdp2.yaml`."
            )


class ZeroStepper:
    """What [`Stepper`] does, done by DeepSpeed: there, clipping and the optimizer are one call."""

    def __init__(
        self, accelerator: Accelerator, config: TrainingConfig, denoiser: nn.Module, optimizer: torch.optim.Optimizer
    ):
        self.accelerator, self.optimizer = accelerator, optimizer
        self.in_bf16 = config.mixed_precision == "bf16"
        self.grouped = [(i, p) for i, group in enumerate(optimizer.param_groups) for p in group["params"]]
        self.wrapped, _ = accelerator.prepare(denoiser, optimizer)
        # DeepSpeed would link moments to parameters after the first group's first step, when other groups have none.
        for part in self.parts():
            step = torch.zeros((), device=part.device)
            optimizer.state[part] = {"step": step} | {key: torch.zeros_like(part) for key in MOMENTS}
        self.wrapped.optimizer._lazy_init_hp_params_optimizer_state()

    def parts(self) -> list[torch.Tensor]:
        """Of each group, what this process keeps: DeepSpeed has put it in the place of the group's parameters."""
        return [group["params"][0] for group in self.optimizer.param_groups]

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.in_bf16)

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        self.wrapped.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed leaves out steps whose gradient is not finite, so a loss that is not gets such a gradient."""
        self.wrapped.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))

    def step(self, loss: float) -> tuple[float, bool]:
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm()), self.wrapped.was_step_applied()

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict]:
        from deepspeed.utils import safe_get_full_optimizer_state

        parts, values = optimizer_state(self.optimizer)
        tensors = {}
        for i, (group, parameter) in enumerate(self.grouped):
            tensors[f"{i}.step"] = parts[f"{group}.step"].clone()  # safetensors keeps no shared memory
            for key in MOMENTS:
                moment = safe_get_full_optimizer_state(parameter, key)  # a collective operation
                tensors[f"{i}.{key}"] = moment.cpu() if self.accelerator.is_main_process else moment.new_empty(0)
        return tensors, values

    def load_optimizer_state(self, tensors: Mapping[str, torch.Tensor], values: dict) -> None:
        """Also takes up the weights that the parameters have now, of which DeepSpeed keeps a copy."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        load_groups(self.optimizer.param_groups, values)
        parts = self.parts()
        for i, (group, parameter) in enumerate(self.grouped):
            safe_set_full_fp32_param(parameter, parameter.detach())
            if f"{i}.step" in tensors:  # not if all steps were left out
                self.optimizer.state[parts[group]]["step"].copy_(tensors[f"{i}.step"])
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, tensors[f"{i}.{key}"].to(parameter.device), key)
