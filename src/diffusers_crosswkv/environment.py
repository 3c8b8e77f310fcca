"""Where and with what something was measured."""

import datetime
import os
import platform
from importlib import metadata

import torch


def best_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return here or torch.device("cpu")


def environment(device: torch.device) -> dict[str, str | int]:
    """Date, device and versions, for a row of results."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": str(device) if device.type == "cpu" else torch.get_device_module(device).get_device_name(device),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    }
