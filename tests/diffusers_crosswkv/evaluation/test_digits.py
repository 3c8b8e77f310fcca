import pytest
import torch

from diffusers_crosswkv.data.digits import load_digits
from diffusers_crosswkv.evaluation.digits import DigitJudge, agreement


def test_the_judge_reads_real_digits_it_has_not_seen():
    judge = DigitJudge(load_digits())
    assert judge.held_out_accuracy > 0.97


def test_the_judge_reads_what_is_there():
    digits = load_digits()
    read = DigitJudge(digits).read(digits.images)
    assert (read == digits.labels).float().mean() > 0.99
    assert (DigitJudge(digits).read(digits.images.flip(-1)) == digits.labels).float().mean() < 0.7


def test_agreement():
    found = agreement([1, 2, 3, 4], ["en", "en", "fr", "fr"], torch.tensor([1, 0, 3, 4]))
    assert (found.overall, found.count) == (0.75, 4)
    assert found.per_language == pytest.approx({"en": 0.5, "fr": 1.0})
