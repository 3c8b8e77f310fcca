"""Checkpoints of a run: folders of safetensors files, written whole or not at all, checked when read."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: tensors by file and name, and everything else as JSON values."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    values: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/checkpoint-<step>` and delete all but the newest `keep`.

    The files are written beside their place, flushed to disk, and renamed at last; if anything fails, what was there
    before is untouched.
    """
    target = checkpoint_folder(folder, checkpoint.step)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}."))
    try:
        digests = {}
        for name, tensors in checkpoint.tensors.items():
            path = temporary / f"{name}.safetensors"
            safetensors.torch.save_file({key: x.detach().contiguous().cpu() for key, x in tensors.items()}, path)
            digests[path.name] = flushed_digest(path)
        manifest = {"step": checkpoint.step, "values": checkpoint.values, "sha256": digests}
        (temporary / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        flushed_digest(temporary / MANIFEST)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def remove_halves(folder: Path) -> None:
    """Delete what a process that was killed while it wrote a checkpoint has left."""
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_latest_checkpoint(folder: Path, warn=print) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if the folder has none at all.

    A damaged one is reported through `warn`, and the one before it is tried.

    Raises:
        ValueError: there are checkpoints, but all are damaged.
    """
    folders = checkpoint_folders(folder)
    for path in reversed(folders):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warn(str(error))
    if folders:
        raise ValueError(f"{folder} must hold a whole checkpoint, but all {len(folders)} are damaged; remove them.")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and compare every file with its digest.

    Raises:
        ValueError: a file is missing or is not what was written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        step, values, digests = manifest["step"], manifest["values"], manifest["sha256"]
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        if not digests:
            raise ValueError(f"{MANIFEST} lists no files")
        for name, digest in digests.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} differs from what was written")
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path / name)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"The checkpoint {path} is damaged: {error}; remove it to go on from an earlier one."
        ) from error
    return Checkpoint(step, tensors, values)


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:08d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def flushed_digest(path: Path) -> str:
    """SHA-256 of a file whose bytes have reached the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
