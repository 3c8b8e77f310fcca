"""The WKV-7 recurrence of CrossWKV and its neighbours, for PyTorch."""

from .elementwise import ChannelWrite, Write
from .feature_maps import FEATURE_MAPS, PRODUCTS, QUADRATIC, map_features
from .interface import final_state, scan_readout, state_readout, state_writes, token_shift_mix, wkv7
from .reference import wkv7_reference

__all__ = [
    "FEATURE_MAPS",
    "PRODUCTS",
    "QUADRATIC",
    "ChannelWrite",
    "Write",
    "final_state",
    "map_features",
    "scan_readout",
    "state_readout",
    "state_writes",
    "token_shift_mix",
    "wkv7",
    "wkv7_reference",
]
