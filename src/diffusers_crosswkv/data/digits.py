"""scikit-learn's 1,797 handwritten digits with captions in four languages: real images that need no download."""

import random
from dataclasses import dataclass

import torch

WORDS = {
    "English": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "Chinese": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
    "Spanish": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    "French": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
}
LANGUAGES = tuple(WORDS)
WORDINGS = {
    "English": (
        "a handwritten {}",
        "the digit {}",
        "{} written by hand",
        "a picture of the number {}",
        "handwriting: {}",
    ),
    "Chinese": ("手写的数字{}", "数字{}", "手写的{}", "数字{}的图片", "用手写的{}"),
    "Spanish": ("un {} escrito a mano", "el dígito {}", "{} manuscrito", "una imagen del número {}", "a mano: {}"),
    "French": ("un {} manuscrit", "le chiffre {}", "{} écrit à la main", "une image du nombre {}", "à la main : {}"),
}
PIXEL_MAX = 16  # scikit-learn's digits hold whole numbers from 0 to 16


@dataclass(frozen=True)
class Digits:
    """Images `[N, 1, 8, 8]` in [-1, 1] and their labels `[N]`, 0 to 9."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        return self.images[index]

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption of image `index`, in a language and wording drawn from `rng`."""
        return caption(int(self.labels[index]), rng.choice(LANGUAGES), rng)


def load_digits() -> Digits:
    """All digits that scikit-learn ships; needs scikit-learn (extra `quickstart`)."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32) * (2 / PIXEL_MAX) - 1
    return Digits(images[:, None], torch.tensor(bunch.target))


def caption(digit: int, language: str, rng: random.Random) -> str:
    """`digit` (0 to 9) in words or as a numeral, in one of the language's wordings, drawn from `rng`."""
    name = rng.choice((WORDS[language][digit], str(digit)))
    return rng.choice(WORDINGS[language]).format(name)


def all_captions() -> list[str]:
    """Every caption there is, in a fixed order: what the tokenizer is fitted on."""
    return [
        wording.format(name)
        for language in LANGUAGES
        for wording in WORDINGS[language]
        for digit in range(10)
        for name in (WORDS[language][digit], str(digit))
    ]
