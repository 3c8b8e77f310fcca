"""The state alone in chunks, from the channels of `quadratic` keys: features are made for a tile of tokens at a time.

They are four times as many numbers as channels. Made here they stay in the cache, and no gradient keeps them.
"""

from typing import NamedTuple

import torch

from . import chunked_multiples
from .channel_features import UnitFeatures, gradient_of_channels, unit_features
from .elementwise import ChannelWrite, Write


class Passed(NamedTuple):
    """What a scan over chunks leaves for its backward."""

    features: UnitFeatures
    write: Write  # of the features, as `chunked_multiples` takes it
    multiples: chunked_multiples.Passed


def with_features(write: ChannelWrite) -> tuple[UnitFeatures, Write]:
    w, k, v, channels, a = write
    features = unit_features(channels.mT.flatten(0, 1).contiguous())
    size, kappa = (x.unflatten(0, channels.shape[:2]).mT for x in (features.size, features.keys))
    return features, Write(w, k * size, v, kappa, a)


def last_state(write: ChannelWrite, state: torch.Tensor | None) -> torch.Tensor:
    """As in `chunked_multiples`."""
    return chunked_multiples.last_state(with_features(write)[1], state)


def pass_chunks(write: ChannelWrite, state: torch.Tensor) -> Passed:
    """As in `chunked_multiples`."""
    features, mapped = with_features(write)
    return Passed(features, mapped, chunked_multiples.pass_chunks(mapped, state))


def gradients_of_chunks(write: ChannelWrite, passed: Passed, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of w, k, v, channels and a in chunks, and of the state `[G, V, K]` before the first chunk."""
    features, mapped, multiples = passed
    d_w, d_k, d_v, d_kappa, d_a, d_state = chunked_multiples.gradients_of_chunks(mapped, multiples, d_state)
    chunks = d_k.shape[:2]
    d_size = (d_k * write.k).mT.flatten(0, 1)
    d_channels = gradient_of_channels(features, d_kappa.mT.flatten(0, 1), d_size).unflatten(0, chunks).mT
    return d_w, d_k * features.size.unflatten(0, chunks).mT, d_v, d_channels, d_a, d_state
