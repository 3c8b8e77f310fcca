"""Random numbers of tests, on the device that they run on."""

import torch


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)
