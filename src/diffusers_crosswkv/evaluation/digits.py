"""Whether a picture shows the digit that its prompt asked for, read by a classifier that saw real digits only."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.svm import SVC

from ..data.digits import PIXEL_MAX, Digits

HELD_OUT = 497  # of 1,797


class DigitJudge:
    """A support vector classifier, fitted on real digits.

    Args:
        digits: what [`load_digits`] returns; the last 497 in the seed's order are held out.
        seed: of that order.
    """

    def __init__(self, digits: Digits, seed: int = 0):
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed)).numpy()
        pixels, labels = features(digits.images), digits.labels.numpy()
        fitted, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
        self._classifier = SVC(gamma=0.001, C=10).fit(pixels[fitted], labels[fitted])
        self.held_out_accuracy = float(self._classifier.score(pixels[held_out], labels[held_out]))

    def read(self, images: torch.Tensor) -> torch.Tensor:
        """The digits `[N]` that it sees in images `[N, 1, 8, 8]`, -1 black to 1 white."""
        return torch.from_numpy(self._classifier.predict(features(images)))


def features(images: torch.Tensor) -> np.ndarray:
    """`[N, 64]`, 0 to 16, the units of scikit-learn's digits."""
    return ((images.clamp(-1, 1).flatten(1) + 1) * (PIXEL_MAX / 2)).numpy()


@dataclass(frozen=True)
class Agreement:
    """The share of pictures that are read as asked, overall and per language."""

    overall: float
    per_language: dict[str, float]
    count: int


def agreement(asked: list[int], languages: list[str], read: torch.Tensor) -> Agreement:
    """Compare what `N` prompts asked for with what is read in their pictures."""
    right = (torch.tensor(asked) == read).float()
    per_language = {
        language: right[[i for i, name in enumerate(languages) if name == language]].mean().item()
        for language in dict.fromkeys(languages)
    }
    return Agreement(right.mean().item(), per_language, len(asked))
