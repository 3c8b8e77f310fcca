"""Words to train and to test on, drawn from an automaton: no test word begins like a word of training."""

import torch

from .automata import Automaton

TRAINED_LENGTH = 16
HELD_OUT = 8  # one in so many beginnings is for tests
PRIME = 2_147_483_647


def is_held_out(words: torch.Tensor) -> torch.Tensor:
    """`[B]`, whether a word `[B, T]` is for tests; its first 16 tokens decide."""
    residue = torch.full((len(words),), 17)
    for token in words[:, :TRAINED_LENGTH].unbind(1):
        residue = (residue * 48_271 + token + 1) % PRIME  # below 2^47: exact
    return residue % HELD_OUT == 0


def draw(
    automaton: Automaton, count: int, length: int, generator: torch.Generator, *, held_out: bool, share: float = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` words `[count, length]` and their labels, all for tests or all for training.

    `share` of the tokens are any of the automaton's; the others are among its generators, if it has some.
    """
    words = torch.empty(0, length, dtype=torch.long)
    while len(words) < count:
        drawn = automaton.sample(count, length, generator)
        if automaton.generators and share < 1:
            chosen = torch.randint(len(automaton.generators), drawn.shape, generator=generator)
            is_any = torch.rand(drawn.shape, generator=generator) < share
            drawn = torch.where(is_any, drawn, torch.tensor(automaton.generators)[chosen])
        words = torch.cat((words, drawn[is_held_out(drawn) == held_out]))
    return words[:count], automaton.label(words[:count])
