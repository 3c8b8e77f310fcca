"""The WKV-7 recurrence of CrossWKV and its neighbours, for PyTorch."""

from .elementwise import FEATURE_MAPS, Write
from .interface import scan_readout, state_readout, state_writes, token_shift_mix, wkv7
from .reference import wkv7_reference

__all__ = [
    "FEATURE_MAPS",
    "Write",
    "scan_readout",
    "state_readout",
    "state_writes",
    "token_shift_mix",
    "wkv7",
    "wkv7_reference",
]
