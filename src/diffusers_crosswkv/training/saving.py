"""A run as a checkpoint and back: the same files whatever the number of processes, and sharded or not."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .checkpoints import Checkpoint
from .optimizers import move_to_step
from .sharding import cut_like, from_main, tensors_from_main, to_main
from .tally import add_up

if TYPE_CHECKING:
    from .run import Run


@torch.no_grad()
def capture(run: "Run") -> Checkpoint:
    """Everything that the steps to come depend on. Called on every process; complete on the main one."""
    averages = {name: to_main(run.accelerator, x) for name, x in run.averages.kept()}
    moments, optimizer_values = run.stepper.optimizer_state()
    tensors = {
        "weights": {name: to_main(run.accelerator, x) for name, x in run.parameters.items()},
        "ema": averages,
        "optimizer": moments,
    }
    values = {
        "base": run.base_digest,
        "optimizer": optimizer_values,
        "scaler": run.scaler.state_dict() if run.scaler is not None else {},
        "ema_step": run.averages.steps,
        "seconds": run.seconds,
        "tally": add_up(run.gather_objects(run.tally.state_dict())),
        "data": run.gather_objects(run.source.state_dict(run.step)),
    }
    return Checkpoint(run.step, tensors, values)


@torch.no_grad()
def restore(run: "Run", checkpoint: Checkpoint | None) -> bool:
    """Put a run where the checkpoint of the main process is; False if there is none.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    read = checkpoint and {"step": checkpoint.step, "values": checkpoint.values, "files": sorted(checkpoint.tensors)}
    read = from_main(run.accelerator, read)
    if read is None:
        return False
    values = read["values"]
    on_main = {} if checkpoint is None else checkpoint.tensors
    tensors = {name: tensors_from_main(run.accelerator, on_main.get(name)) for name in read["files"]}
    check_model(run, tensors["weights"], values["base"])
    for name, parameter in run.parameters.items():
        parameter.copy_(cut_like(tensors["weights"][name], parameter))
    run.averages.load_state_dict(tensors.get("ema", {}), values["ema_step"])
    weight_decays = [group["weight_decay"] for group in run.optimizer.param_groups]
    run.stepper.load_optimizer_state(tensors["optimizer"], values["optimizer"])
    move_to_step(run.lr_scheduler, weight_decays, read["step"])
    if run.scaler is not None and values["scaler"]:
        run.scaler.load_state_dict(values["scaler"])
    run.step, run.seconds = read["step"], values["seconds"]
    tally = values["tally"] if run.accelerator.is_main_process else values["tally"] | {"seen": 0, "broken": 0}
    run.tally.load_state_dict(tally)
    for state in values["data"]:  # of each process that there was
        run.source.load_state_dict(state)
    return True


def check_model(run: "Run", weights: Mapping[str, torch.Tensor], base: str) -> None:
    shapes = {name: tuple(x.shape) for name, x in run.parameters.items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    if shapes != found or base != run.base_digest:
        different = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        what = (
            f"{different[0]} differs"
            if different
            else "what is not trained differs: weights, tokenizer or noise schedule"
        )
        raise ValueError(
            f"The checkpoints in {run.config.checkpoints_dir} must be of this model, but hold another one ({what}); "
            "use the model they were made with, or another `output_dir`."
        )
