"""The WKV-7 recurrence of CrossWKV and its neighbours, for PyTorch."""

from .interface import state_readout, token_shift_mix, wkv7
from .reference import wkv7_reference

__all__ = ["state_readout", "token_shift_mix", "wkv7", "wkv7_reference"]
