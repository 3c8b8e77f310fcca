"""The code that goes with a checkpoint: what a machine without this package loads by `trust_remote_code=True`."""

import os
from pathlib import Path

LIBRARY = "diffusers_crosswkv"  # what `model_index.json` calls us; remote code is looked for in `<LIBRARY>.py`
PIPELINE_FILE = "pipeline.py"
UNET_FILE = f"{LIBRARY}.py"


def write_remote_code(cls: type, folder: str | os.PathLike, file_name: str) -> None:
    """Write one file from which `cls` can be loaded without this package; for a class that is not ours, nothing.

    Somebody's own subclass is saved as any class is that Diffusers does not know: under the name of its module.
    """
    if not is_ours(cls):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, file_name).write_text(remote_code(cls.__module__), encoding="utf-8")


def is_ours(cls: type) -> bool:
    """Whether `cls` is defined in this package or, where this is remote code itself, in this file."""
    return cls.__module__ == __name__ or cls.__module__.startswith(f"{LIBRARY}.")


def remote_code(module: str) -> str:
    """The source of one file that defines what `module` does."""
    try:
        from .flat_module import flatten
    except ImportError:  # this is such a file
        return Path(__file__).read_text(encoding="utf-8")
    else:
        return flatten(module)
