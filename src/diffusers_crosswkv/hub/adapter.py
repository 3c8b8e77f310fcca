"""One file beside a model: a LoRA, or a prompt state that training has made."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors

from ..models.prompt_state_file import FORMAT

LORA, STATE = "lora", "state"


@dataclass(frozen=True)
class SavedAdapter:
    """A safetensors file that changes a pipeline.

    Args:
        path: of the file; its name is that in the repository.
        kind: `LORA` or `STATE`.
        numbers: in it.
    """

    path: Path
    kind: str
    numbers: int

    @property
    def has_pipeline_code(self) -> bool:
        return False


def read_saved_adapter(file: str | os.PathLike) -> SavedAdapter:
    """Check that `file` is a LoRA or a prompt state, and read what the model card says of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or something else.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There must be a file at {path}; there is none.")
    try:
        with safetensors.safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            sizes = {name: math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}); save it again.") from error
    is_state = metadata.get("format") == FORMAT
    if not is_state and not any("lora" in name for name in sizes):
        raise ValueError(f"{path} must hold a LoRA or a prompt state, got {sorted(sizes)[:3]} ...")
    return SavedAdapter(path, STATE if is_state else LORA, sum(sizes.values()))
