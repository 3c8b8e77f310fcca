"""A small model of token sequences whose mixer is RWKV-7's layer, or a control of it."""

from .model import SequenceConfig, SequenceModel, Trace

__all__ = ["SequenceConfig", "SequenceModel", "Trace"]
