"""Fixtures of the kernels' tests."""

import warnings

import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """`torch.empty` is filled with NaN: what a backend forgets to write is seen.

    PyTorch does so where algorithms shall be deterministic. On a GPU not all of them can be, which is no concern here.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(does not have a deterministic implementation|Deterministic behavior)")
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def stride():
    """Makes the same numbers lie in another order, tokens before batch, with NaN between channels' rows."""

    def apart(x):
        if x is None or x.ndim < 3:
            return x
        view = x.new_full((x.shape[1], x.shape[0], *x.shape[2:-1], x.shape[-1] + 5), torch.nan)
        view = view.transpose(0, 1)[..., 2:-3]
        return view.copy_(x)

    return apart
