"""Prompt states as safetensors files: written whole or not at all, and checked when they are read."""

import json
import os
import tempfile
from pathlib import Path
from typing import NoReturn

import safetensors
import safetensors.torch
import torch

FORMAT = "diffusers_crosswkv.PromptState"
FORMAT_VERSION = 3  # 1 had no transitions, 2 another fingerprint; neither was released
REST = {"last_token", "fingerprint"}  # what a file holds besides the layers
STATE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATE_DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in STATE_DTYPES)
Tensors = dict[str, torch.Tensor]


def write_state_file(path: str | os.PathLike, tensors: Tensors, fusion: str) -> None:
    """Write beside `path`, then rename; folders on the way are made.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file, but is a folder; save to {path / 'prompt.safetensors'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "fusion": fusion}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder, path.name)
        safetensors.torch.save_file(tensors, written, metadata)
        os.replace(written, path)


def read_state_file(path: str | os.PathLike) -> tuple[Tensors, str]:
    """Of one state, on the CPU: `states.i`, `transitions.i`, `last_token` and `fingerprint`; and its fusion.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or not what `write_state_file` of this version writes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no prompt state at {path}; `PromptState.save` writes one.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # clones: what `get_tensor` returns is the file's own memory, and changes with it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}); save the prompt state again.") from error
    if metadata.get("format") != FORMAT or not REST | {"states.0"} <= tensors.keys():
        raise ValueError(
            f"{path} holds no prompt state, but {sorted(tensors)[:3]} ...; `PromptState.save` writes one."
        )
    check_version(path, metadata)
    check_numbers(path, tensors)
    layers = range((len(tensors) - 2) // 2)
    if tensors.keys() != {f"{name}.{i}" for name in ("states", "transitions") for i in layers} | REST:
        raise ValueError(f"{path} is damaged: it holds {sorted(tensors)}; save the prompt state again.")
    check_shapes(path, tensors)
    return tensors, metadata["fusion"]


def check_version(path: str | os.PathLike, metadata: dict[str, str]) -> None:
    version = metadata.get("version", "")
    if not version.isdecimal() or "fusion" not in metadata:
        raise ValueError(f"{path} is damaged: its version or fusion is missing; save the prompt state again.")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has prompt state format {version}, this version reads up to {FORMAT_VERSION}; "
            "upgrade diffusers_crosswkv."
        )
    if int(version) < FORMAT_VERSION:
        raise ValueError(
            f"{path} has prompt state format {version}, this version reads {FORMAT_VERSION}; encode the prompt again."
        )


def check_numbers(path: str | os.PathLike, tensors: Tensors) -> None:
    for name, x in tensors.items():
        if x.dtype not in STATE_DTYPES:
            raise ValueError(
                f"{path} must hold {STATE_DTYPE_NAMES}, but {name} is {x.dtype}; save `state.to(torch.float32)`."
            )
    not_finite = [name for name, x in tensors.items() if not x.isfinite().all()]
    if not_finite:
        raise ValueError(f"{path} must be finite, but {', '.join(not_finite)} is not; encode the prompt again.")


def check_shapes(path: str | os.PathLike, tensors: Tensors) -> None:
    """One batch in all tensors; a layer's transitions of the K of its states, and of no more heads."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    for name, shape in shapes.items():
        rank = 2 if name in REST else 4
        if len(shape) != rank:
            refuse_shape(path, name, f"have {rank} dimensions", shape)
    batch_size = shapes["last_token"][0]
    for name in sorted(shapes.keys() - REST):
        kind, _, layer = name.partition(".")
        shape, (_, heads, _, width) = shapes[name], shapes[f"states.{layer}"]
        if shape[0] != batch_size:
            refuse_shape(path, name, f"hold {batch_size} prompts, as last_token does", shape)
        if kind == "transitions" and (shape[1] > heads or shape[2:] != (width, width)):
            refuse_shape(path, name, f"be [B, {heads} at most, {width}, {width}], as states.{layer} is", shape)


def refuse_shape(path: str | os.PathLike, name: str, requirement: str, shape: tuple[int, ...]) -> NoReturn:
    raise ValueError(f"{path} is damaged: {name} must {requirement}, got {list(shape)}; save the prompt state again.")
