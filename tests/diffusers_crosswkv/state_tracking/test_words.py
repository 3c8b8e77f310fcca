import pytest
import torch

from diffusers_crosswkv.state_tracking.automata import TASKS
from diffusers_crosswkv.state_tracking.words import TRAINED_LENGTH, draw, is_held_out


def drawn(name, length, held_out, seed=3, count=400):
    return draw(TASKS[name], count, length, torch.Generator().manual_seed(seed), held_out=held_out)


@pytest.mark.parametrize("name", TASKS)
def test_no_test_word_begins_like_a_word_of_training(name):
    beginnings = {tuple(word.tolist()) for seed in range(20) for word in drawn(name, TRAINED_LENGTH, False, seed)[0]}
    tests = drawn(name, 5 * TRAINED_LENGTH, True)[0]
    assert not beginnings & {tuple(word[:TRAINED_LENGTH].tolist()) for word in tests}
    assert is_held_out(tests).all()


def test_a_share_of_all_words_is_held_out():
    words = torch.cartesian_prod(*[torch.arange(2)] * TRAINED_LENGTH)
    assert 0.115 < is_held_out(words).double().mean() < 0.135  # one in eight


def test_words_follow_from_the_seed_and_have_their_labels():
    first, again, other = (drawn("s5_swaps", 30, False, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == first[1].shape == (400, 30)
    assert torch.equal(first[1], TASKS["s5_swaps"].label(first[0]))


@pytest.mark.parametrize(("name", "number"), [("s5", 10), ("a5", 20)])
def test_training_begins_with_generators(name, number):
    automaton = TASKS[name]
    assert len(automaton.generators) == number
    reached = {0}
    while True:
        more = reached | {int(automaton.transitions[state, g]) for state in reached for g in automaton.generators}
        if more == reached:
            break
        reached = more
    assert len(reached) == automaton.classes  # they do generate the group
    generator, generators = torch.Generator().manual_seed(1), torch.tensor(automaton.generators)
    shares = []
    for share in (0, 0.5, 1):
        words, labels = draw(automaton, 300, 16, generator, held_out=False, share=share)
        assert torch.equal(labels, automaton.label(words))
        shares.append(torch.isin(words, generators).double().mean().item())
    assert shares[0] == 1
    assert shares[1] == pytest.approx(0.5 + 0.5 * number / automaton.vocabulary, abs=0.04)
    assert shares[2] == pytest.approx(number / automaton.vocabulary, abs=0.03)
