import pytest

from diffusers_crosswkv.evaluation.metrics import read_image_prompts
from diffusers_crosswkv.evaluation.metrics.prompts import check_english


@pytest.fixture
def prompts_of(tmp_path):
    def read(content):
        (tmp_path / "prompts.txt").write_bytes(content)
        return read_image_prompts(tmp_path / "prompts.txt")

    return read


def test_a_line_is_a_prompt(prompts_of):
    assert prompts_of(b"one\ntwo\n") == prompts_of(b"\xef\xbb\xbf one\r\ntwo\r\n") == ("one", "two")
    assert prompts_of("one\u2028more\ntwo\x85more".encode()) == ("one\u2028more", "two\x85more")


def test_a_line_that_would_shift_the_others(prompts_of):
    for content, line in ((b"one\n\nthree\n", 2), (b"one\n \r\n", 2), (b"one\ntwo\n\n", 3)):
        with pytest.raises(ValueError, match=f"must be the prompt of one image, but line {line} is empty; delete it"):
            prompts_of(content)


def test_files_of_no_prompts(prompts_of, tmp_path):
    for content, message in ((b"\xff\xfe", "must be UTF-8"), (b"\n \n", "must hold one prompt per line, got none")):
        with pytest.raises(ValueError, match=message):
            prompts_of(content)
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        read_image_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("prompt", ["数字二", "цифра", "δύο", "猫", "a 在屋顶上睡觉"])
def test_prompts_for_the_multilingual_scorer(prompt):
    with pytest.raises(ValueError, match=r"image 1 is .*; ask for `clip_score_multilingual`"):
        check_english(["one", prompt])


@pytest.mark.parametrize(
    "prompt", ["a naïve café, 2 €", "the 1ª edition, 5 µm", "Hawaiʻi", "the letter π", "a sign that reads 猫", "5"]
)
def test_english_with_foreign_letters(prompt):
    check_english([prompt])
