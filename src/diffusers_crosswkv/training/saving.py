"""A run as a checkpoint and back: the same files whatever the number of processes, and sharded or not."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints import Checkpoint
from .sharding import cut_like, from_main, tensors_from_main, whole
from .tally import add_up

if TYPE_CHECKING:
    from .run import Run

OptimizerState = dict[str, dict[str, Any]]  # by parameter and by what the optimizer calls it


@torch.no_grad()
def capture(run: "Run") -> Checkpoint:
    """Everything that the steps to come depend on. Called on every process; complete on the main one."""
    averages, averaged_steps = run.averages.state_dict()
    state = whole_optimizer_state(run.optimizer, run.parameters)
    tensors = {
        "weights": {name: whole(x).detach() for name, x in run.parameters.items()},
        "ema": averages,
        "optimizer": {f"{key} {name}": x for name, of in state.items() for key, x in of.items() if torch.is_tensor(x)},
    }
    other = {name: {key: x for key, x in of.items() if not torch.is_tensor(x)} for name, of in state.items()}
    values = {
        "base": run.base_digest,
        "optimizer": {name: of for name, of in other.items() if of},
        "groups": [group_values(group) for group in run.optimizer.param_groups],
        "lr_scheduler": run.lr_scheduler.state_dict(),
        "scaler": run.scaler.state_dict() if run.scaler is not None else {},
        "ema_step": averaged_steps,
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
    tensors = {
        name: tensors_from_main(run.accelerator, checkpoint and checkpoint.tensors[name]) for name in read["files"]
    }
    check_model(run, tensors["weights"], values["base"])
    for name, parameter in run.parameters.items():
        parameter.copy_(cut_like(tensors["weights"][name], parameter))
    run.averages.load_state_dict(tensors.get("ema", {}), values["ema_step"])
    load_optimizer(run.optimizer, run.parameters, tensors.get("optimizer", {}), values)
    run.lr_scheduler.load_state_dict(values["lr_scheduler"])
    if run.scaler is not None and values["scaler"]:
        run.scaler.load_state_dict(values["scaler"])
    run.step, run.seconds = read["step"], values["seconds"]
    tally = values["tally"] if run.accelerator.is_main_process else values["tally"] | {"seen": 0, "broken": 0}
    run.tally.load_state_dict(tally)
    states = values["data"]
    run.source.load_state_dict(states[run.accelerator.process_index % len(states)])
    return True


def check_model(run: "Run", weights: Mapping[str, torch.Tensor], base: str) -> None:
    shapes = {name: tuple(x.shape) for name, x in run.parameters.items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    if shapes != found or base != run.base_digest:
        different = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        what = f"{different[0]} differs" if different else "the weights that are not trained differ"
        raise ValueError(
            f"The checkpoints in {run.config.checkpoints_dir} must be of this model, but hold another one ({what}); "
            "use the model they were made with, or another `output_dir`."
        )


def names_in_groups(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names in the order in which the optimizer numbers its parameters."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def whole_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    return {
        name: {key: whole(x) if torch.is_tensor(x) else x for key, x in optimizer.state[parameters[name]].items()}
        for name in names_in_groups(optimizer, parameters)
        if parameters[name] in optimizer.state
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
) -> None:
    """Tensors of a parameter's shape are sharded as it is; the optimizer itself puts them on its device."""
    state: dict[str, dict[str, Any]] = {name: dict(of) for name, of in values["optimizer"].items()}
    for full_name, x in tensors.items():
        key, name = full_name.split(" ", 1)
        like = parameters[name]
        state.setdefault(name, {})[key] = cut_like(x, like) if x.dim() and x.shape == like.shape else x
    numbers = {name: i for i, name in enumerate(names_in_groups(optimizer, parameters))}
    groups = optimizer.state_dict()["param_groups"]
    groups = [group | saved for group, saved in zip(groups, values["groups"], strict=True)]
    optimizer.load_state_dict({"state": {numbers[name]: of for name, of in state.items()}, "param_groups": groups})


def group_values(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group, the learning rate and whatever else its optimizer changes among them."""
    return {key: value for key, value in group.items() if isinstance(value, int | float | str | bool) or value is None}
