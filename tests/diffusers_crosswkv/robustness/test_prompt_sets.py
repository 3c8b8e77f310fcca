"""Prompts ask for the digit they say they ask for, in words that training did not have where that is the point."""

import pytest

from diffusers_crosswkv.data.digits import LANGUAGES, WORDS, all_captions
from diffusers_crosswkv.robustness.prompt_sets import PROMPT_SETS, prompts


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_prompt_names_its_digit_and_no_other(name, language):
    texts, digits = prompts(name, language, 40, seed=0)
    assert sorted(digits) == sorted([*range(10)] * 4)
    for text, digit in zip(texts, digits, strict=True):
        assert str(digit) in text or WORDS[language][digit] in text.lower()
        assert not any(str(other) in text for other in range(10) if other != digit)
    assert prompts(name, language, 40, seed=0)[0] == texts
    assert prompts(name, language, 40, seed=1)[0] != texts


def test_what_is_new_is_not_in_training():
    known = set(all_captions())
    for name in PROMPT_SETS:
        texts = [text for language in LANGUAGES for text in prompts(name, language, 50, seed=0)[0]]
        seen = sum(text in known for text in texts)
        if name == "as in training":
            assert seen == len(texts)
        elif name == "upper case":  # Chinese has no capitals, and one French wording is all it takes
            assert seen < len(texts) / 2
        else:
            assert seen == 0, name


def test_where_the_digit_stands():
    first, digits = prompts("very long, digit first", "English", 20, seed=0)
    last, _ = prompts("very long, digit last", "English", 20, seed=0)
    for early, late, digit in zip(first, last, digits, strict=True):
        names = (str(digit), WORDS["English"][digit])
        assert min(early.find(x) for x in names if x in early) < 40
        assert len(late) - max(late.rfind(x) for x in names) < 40
        assert len(early) > 500


@pytest.mark.parametrize("count", [0, 15])
def test_digits_come_up_equally_often(count):
    with pytest.raises(ValueError, match="multiple of 10"):
        prompts("as in training", "English", count, seed=0)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="got 'loud' in 'English'"):
        prompts("loud", "English", 10, seed=0)
