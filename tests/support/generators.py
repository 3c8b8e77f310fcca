"""The device that tests run on, and random numbers there."""

import torch

HERE = torch.get_default_device()  # set by conftest.py


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(HERE).manual_seed(seed)
