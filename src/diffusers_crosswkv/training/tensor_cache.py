"""Tensors on disk under keys that cover all that they depend on: computed once, by any number of runs at a time."""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn


class CacheSize(NamedTuple):
    entries: int
    nbytes: int


class TensorCache:
    """One safetensors file per key, below `folder`, which is made when something is put.

    Threads, processes and machines may share the folder: files appear whole, and whoever writes a key last wins.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was put under `key`, on the CPU; None if nothing was, or if the file is damaged."""
        try:
            data = self.path(key).read_bytes()  # at once: the file may be replaced meanwhile
            tensors = load(data)
        except (FileNotFoundError, SafetensorError):
            return None
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors if header.get("__metadata__") == described(key, tensors) else None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep `tensors`, in the place of what was there.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.path(key)
        kept = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        temporary = path.with_name(f".{key}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save(kept, described(key, kept)))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise OSError(
                f"The cache in {self.folder} must be writable and have space, got: {error}; free some, or choose "
                "another folder for `caches`."
            ) from error

    def size(self) -> CacheSize:
        """Files and their bytes; reads the folder."""
        sizes = [path.stat().st_size for path in self.folder.glob("*/*.safetensors")]
        return CacheSize(len(sizes), sum(sizes))

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def described(key: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What a file says of itself: a disk that was full or lost power can leave zeros where data was."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(as_bytes(tensors[name]), checksum)
    return {"key": key, "crc32": f"{checksum:08x}"}


def cache_key(**content: Any) -> str:
    """SHA-256 of JSON values: all that decides what is cached."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of(model: nn.Module, config: Mapping[str, Any]) -> str:
    """SHA-256 of a model: all its weights in their dtypes, its class and its settings; not of where it came from."""
    settings = {name: value for name, value in config.items() if name not in WHERE_FROM}
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings], sort_keys=True, default=str).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(as_bytes(x.detach().cpu()))
    return digest.hexdigest()


WHERE_FROM = ("_name_or_path", "_diffusers_version", "transformers_version")


def as_bytes(x: torch.Tensor) -> memoryview:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().data
