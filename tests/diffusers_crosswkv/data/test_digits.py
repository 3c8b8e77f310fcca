import random

import torch

from diffusers_crosswkv.data.digits import LANGUAGES, WORDINGS, WORDS, all_captions, caption, load_digits


def test_real_images():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (-1, 1)
    assert torch.bincount(digits.labels).min() > 170


def test_captions_name_the_digit_in_words_or_as_numeral():
    rng = random.Random(0)
    for language in LANGUAGES:
        for digit in range(10):
            found = {caption(digit, language, rng) for _ in range(100)}
            assert len(found) == 2 * len(WORDINGS[language])
            assert all(WORDS[language][digit] in text or str(digit) in text for text in found)


def test_every_caption_is_listed_once():
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 4 * 5 * 10 * 2
    rng = random.Random(1)
    digits = load_digits()
    assert {digits.caption(i, rng) for i in range(300)} <= set(captions)


def test_languages_are_drawn_evenly():
    digits, rng = load_digits(), random.Random(2)
    chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in digits.caption(0, rng)) for _ in range(1000))
    assert 200 < chinese < 300
