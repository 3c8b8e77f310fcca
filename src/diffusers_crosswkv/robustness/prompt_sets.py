"""Prompts for digits as people write them: as in training, shorter, longer, in words that training never had."""

import random
from collections.abc import Callable

from ..data.captions import GRAMMARS
from ..data.digits import LANGUAGES, WORDS, caption

UNSEEN_WORDINGS = {
    "English": ("please draw a {}", "I would like to see the numeral {}", "{}, in ink on paper"),
    "Chinese": ("请画一个{}", "我想看到数字{}", "纸上用墨水写的{}"),
    "Spanish": ("por favor, dibuja un {}", "quisiera ver la cifra {}", "{}, con tinta sobre papel"),
    "French": ("dessine un {}, s'il te plaît", "je voudrais voir le nombre {}", "{}, à l'encre sur papier"),
}
MEDIUM, LONG, VERY_LONG = 2, 6, 30  # sentences that say nothing of the digit


def alone(digit: int, language: str, rng: random.Random) -> str:
    return rng.choice((WORDS[language][digit], str(digit)))


def unseen_wording(digit: int, language: str, rng: random.Random) -> str:
    return rng.choice(UNSEEN_WORDINGS[language]).format(alone(digit, language, rng))


def upper_case(digit: int, language: str, rng: random.Random) -> str:
    return caption(digit, language, rng).upper()


def irrelevant(count: int, language: str, rng: random.Random) -> list[str]:
    """`count` sentences that say nothing of a digit, in an order of their own."""
    sentences: list[str] = []
    while len(sentences) < count:
        sentences += rng.sample(GRAMMARS[language].irrelevant, len(GRAMMARS[language].irrelevant))
    return sentences[:count]


def digit_first(count: int) -> Callable[[int, str, random.Random], str]:
    def prompt(digit: int, language: str, rng: random.Random) -> str:
        sentences = [caption(digit, language, rng), *irrelevant(count, language, rng)]
        return GRAMMARS[language].full_stop.join(sentences)

    return prompt


def digit_last(count: int) -> Callable[[int, str, random.Random], str]:
    def prompt(digit: int, language: str, rng: random.Random) -> str:
        sentences = [*irrelevant(count, language, rng), caption(digit, language, rng)]
        return GRAMMARS[language].full_stop.join(sentences)

    return prompt


PROMPT_SETS: dict[str, Callable[[int, str, random.Random], str]] = {
    "as in training": caption,
    "the digit alone": alone,
    "unseen wording": unseen_wording,
    "upper case": upper_case,
    "medium, digit first": digit_first(MEDIUM),
    "medium, digit last": digit_last(MEDIUM),
    "long, digit first": digit_first(LONG),
    "long, digit last": digit_last(LONG),
    "very long, digit first": digit_first(VERY_LONG),
    "very long, digit last": digit_last(VERY_LONG),
}


def prompts(name: str, language: str, count: int, seed: int) -> tuple[list[str], list[int]]:
    """`count` prompts of one set in one language and the digits they ask for, every digit equally often.

    Raises:
        ValueError: `count` is no positive multiple of 10; an unknown set or language.
    """
    if count < 1 or count % 10:
        raise ValueError(f"`count` must be a positive multiple of 10, got {count}.")
    if name not in PROMPT_SETS or language not in LANGUAGES:
        raise ValueError(f"There are the sets {list(PROMPT_SETS)} in {list(LANGUAGES)}, got {name!r} in {language!r}.")
    rng = random.Random(f"{seed}/{name}/{language}")
    digits = [i % 10 for i in range(count)]
    return [PROMPT_SETS[name](digit, language, rng) for digit in digits], digits
