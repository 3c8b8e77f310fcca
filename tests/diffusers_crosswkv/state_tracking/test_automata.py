"""Tables against brute force: permutations as matrices, expressions by Python, words by counting."""

import itertools

import pytest
import torch

from diffusers_crosswkv.state_tracking.automata import FORBIDDEN, TASKS, TITLES, Automaton

GROUPS = {"s5": 120, "a5": 60, "z60": 60, "parity": 2}


def words(name, count=50, length=40):
    generator = torch.Generator().manual_seed(1)
    tokens = TASKS[name].sample(count, length, generator)
    return tokens, TASKS[name].label(tokens)


@pytest.mark.parametrize("name", GROUPS)
def test_group_laws(name):
    table = TASKS[name].transitions
    order = GROUPS[name]
    assert table.shape == (order, order)
    everything = torch.arange(order)
    assert torch.equal(table[0], everything)  # the first is the identity
    assert torch.equal(table[:, 0], everything)
    assert torch.equal(table.sort(dim=1).values, everything.expand(order, order))
    assert torch.equal(table.sort(dim=0).values, everything[:, None].expand(order, order))
    assert torch.equal(table[table], table[everything[:, None, None], table])  # (ab)c = a(bc)
    commutes = torch.equal(table, table.T)
    assert commutes == (name in ("z60", "parity"))


def derived(table):
    """The subgroup that the commutators `a b a^-1 b^-1` generate, as a set of elements."""
    order = len(table)
    inverse = (table == 0).long().argmax(dim=1)
    a, b = torch.arange(order)[:, None], torch.arange(order)
    found = table[table[a, b], table[inverse[a], inverse[b]]].unique()
    while True:
        more = table[found[:, None], found].unique()
        if len(more) == len(found):
            return found
        found = more


def test_a5_is_not_solvable_and_s5_contains_it():
    assert len(derived(TASKS["a5"].transitions)) == 60
    assert len(derived(TASKS["s5"].transitions)) == 60
    assert len(derived(TASKS["z60"].transitions)) == 1


@pytest.mark.parametrize("name", ["s5", "a5", "z60"])
def test_generators_generate_their_group(name):
    automaton = TASKS[name]
    reached = {automaton.start}
    while new := set(automaton.transitions[sorted(reached)][:, automaton.generators].flatten().tolist()) - reached:
        reached |= new
    assert len(reached) == GROUPS[name]
    assert len(automaton.generators) < automaton.vocabulary / 2


def permutation_matrices(even_only=False):
    matrices = [torch.eye(5, dtype=torch.float64)[:, list(p)] for p in itertools.permutations(range(5))]
    return [m for m in matrices if not even_only or torch.linalg.det(m) > 0]


@pytest.mark.parametrize("name", ["s5", "a5", "s5_swaps"])
def test_permutations_multiply_as_matrices(name):
    elements = permutation_matrices(even_only=name == "a5")
    tokens_of = elements
    if name == "s5_swaps":
        tokens_of = [m for m in elements if m.trace() == 3]
        assert len(tokens_of) == 10
        assert all(torch.equal(m @ m, torch.eye(5, dtype=torch.float64)) for m in tokens_of)
    tokens, labels = words(name)
    for word, said in zip(tokens, labels, strict=True):
        product = torch.eye(5, dtype=torch.float64)
        for token, label in zip(word, said, strict=True):
            product = product @ tokens_of[token]
            assert torch.equal(product, elements[label])


@pytest.mark.parametrize("name", ["z60", "parity"])
def test_sums(name):
    tokens, labels = words(name)
    assert torch.equal(labels, tokens.cumsum(1) % GROUPS[name])


def test_even_pairs_counts_changes_of_letter():
    tokens, labels = words("even_pairs")
    changes = (tokens.diff(dim=1) != 0).cumsum(1)
    assert (labels[:, 0] == 1).all()
    assert torch.equal(labels[:, 1:], (changes % 2 == 0).long())


def test_cycle_navigation_walks():
    tokens, labels = words("cycle_navigation")
    steps = torch.tensor([0, 1, -1])[tokens]
    assert torch.equal(labels, steps.cumsum(1) % 5)


def test_modular_arithmetic_agrees_with_python():
    tokens, labels = words("modular_arithmetic")
    assert (tokens[:, ::2] < 5).all() and (tokens[:, 1::2] >= 5).all()
    for word, said in zip(tokens.tolist(), labels.tolist(), strict=True):
        text = "".join("01234+-*"[token] for token in word)
        for t in range(0, len(word), 2):
            assert said[t] == eval(text[: t + 1]) % 5
            assert said[t + 1] == said[t]  # an operator changes nothing yet


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_uniform_among_those_that_may_follow(name):
    automaton: Automaton = TASKS[name]
    assert name in TITLES
    tokens, labels = words(name, count=2000, length=12)
    assert labels.min() >= 0 and labels.max() < automaton.classes
    for t, allowed in ((0, automaton.transitions[automaton.start] != FORBIDDEN), (2, None)):
        seen = torch.bincount(tokens[:, t], minlength=automaton.vocabulary)
        if allowed is not None:
            expected = 2000 / int(allowed.sum())
            assert (seen[~allowed] == 0).all()
            assert (seen[allowed] - expected).abs().max() < 5 * expected**0.5
    assert len(labels[:, -2:].unique()) >= 0.9 * automaton.classes
