"""Word problems of groups and regular languages, as finite automata: what to say after every token."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FORBIDDEN = -1


@dataclass(frozen=True)
class Automaton:
    """A task: read a token, go to another state, say the state's class.

    Attributes:
        transitions: `[states, tokens]`, the next state, or `FORBIDDEN` where a token cannot follow.
        outputs: `[states]`, the class that is right in a state.
        start: the state before the first token.
    """

    transitions: torch.Tensor
    outputs: torch.Tensor
    start: int

    @property
    def vocabulary(self) -> int:
        return self.transitions.shape[1]

    @property
    def classes(self) -> int:
        return int(self.outputs.max()) + 1

    def label(self, tokens: torch.Tensor) -> torch.Tensor:
        """The class behind every token, `[B, T]` to `[B, T]`."""
        states = torch.full((len(tokens),), self.start)
        labels = torch.empty_like(tokens)
        for t in range(tokens.shape[1]):
            states = self.transitions[states, tokens[:, t]]
            labels[:, t] = self.outputs[states]
        return labels

    def sample(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Token sequences `[count, length]`, every token uniform among those that may follow."""
        allowed = self.transitions != FORBIDDEN
        choices = allowed.byte().argsort(dim=1, descending=True, stable=True)  # the allowed tokens come first
        number = allowed.sum(dim=1)
        draws = torch.rand(count, length, generator=generator, dtype=torch.float64)
        states = torch.full((count,), self.start)
        tokens = torch.empty(count, length, dtype=torch.long)
        for t in range(length):
            tokens[:, t] = choices[states, (draws[:, t] * number[states]).long()]
            states = self.transitions[states, tokens[:, t]]
        return tokens


def word_problem(elements: Sequence, product, generators: Sequence) -> Automaton:
    """The product so far, one class per group element; `elements[0]` is the identity."""
    number = {element: i for i, element in enumerate(elements)}
    rows = [[number[product(element, generator)] for generator in generators] for element in elements]
    return Automaton(torch.tensor(rows), torch.arange(len(elements)), start=0)


def cyclic(order: int) -> Automaton:
    """Z_n: sums modulo n of tokens 0 to n - 1. Parity is Z_2."""
    return word_problem(range(order), lambda a, b: (a + b) % order, range(order))


def compose(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that does `q` first: `i -> p[q[i]]`."""
    return tuple(p[i] for i in q)


def is_even(p: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0


def symmetric(swaps_only: bool = False) -> Automaton:
    """S_5; the tokens are all 120 permutations, or its ten swaps of two elements."""
    elements = list(itertools.permutations(range(5)))
    swaps = [p for p in elements if sum(i != x for i, x in enumerate(p)) == 2]
    return word_problem(elements, compose, swaps if swaps_only else elements)


def alternating() -> Automaton:
    """A_5, the 60 even permutations: the smallest group whose word problem is complete for NC1."""
    elements = [p for p in itertools.permutations(range(5)) if is_even(p)]
    return word_problem(elements, compose, elements)


def even_pairs() -> Automaton:
    """Whether a word of two letters has an even number of changes of letter: whether it ends as it began."""
    # states: nothing read, then first letter and last letter
    rows = [[1, 4]] + [[1 + 2 * first, 2 + 2 * first] for first in (0, 1) for _ in (0, 1)]
    return Automaton(torch.tensor(rows), torch.tensor([1, 1, 0, 0, 1]), start=0)


def cycle_navigation() -> Automaton:
    """Where one is on a cycle of five places after steps of 0, +1 and -1."""
    rows = [[place, (place + 1) % 5, (place - 1) % 5] for place in range(5)]
    return Automaton(torch.tensor(rows), torch.arange(5), start=0)


def modular_arithmetic() -> Automaton:
    """Value modulo 5 of expressions like `3 + 2 * 4 - 1`, `*` before `+` and `-`, without brackets.

    Tokens 0 to 4 are digits, 5, 6, 7 are `+`, `-`, `*`. Behind an operator the value is that of what stood before it.
    A state is (sum of finished terms, the open term with its sign, what may follow).
    """
    digit, times, plus, minus = "after a digit", "after *", "after +", "after -"
    states = [(s, term, kind) for kind in (digit, times) for s in range(5) for term in range(5)]
    states += [(s, 0, kind) for kind in (plus, minus) for s in range(5)]
    number = {state: i for i, state in enumerate(states)}
    rows = []
    for s, term, kind in states:
        if kind == digit:
            value = (s + term) % 5
            rows.append([FORBIDDEN] * 5 + [number[value, 0, plus], number[value, 0, minus], number[s, term, times]])
        else:
            factor = {times: term, plus: 1, minus: -1}[kind]
            rows.append([number[s, factor * d % 5, digit] for d in range(5)] + [FORBIDDEN] * 3)
    outputs = [(s + term) % 5 for s, term, _ in states]
    return Automaton(torch.tensor(rows), torch.tensor(outputs), start=number[0, 0, plus])


TASKS = {
    "s5_swaps": symmetric(swaps_only=True),
    "s5": symmetric(),
    "a5": alternating(),
    "z60": cyclic(60),
    "parity": cyclic(2),
    "even_pairs": even_pairs(),
    "cycle_navigation": cycle_navigation(),
    "modular_arithmetic": modular_arithmetic(),
}
TITLES = {
    "s5_swaps": "S5, its 10 swaps",
    "s5": "S5, all 120 elements",
    "a5": "A5, all 60 elements",
    "z60": "Z60, all 60 elements",
    "parity": "parity",
    "even_pairs": "even pairs",
    "cycle_navigation": "cycle navigation",
    "modular_arithmetic": "modular arithmetic without brackets",
}
