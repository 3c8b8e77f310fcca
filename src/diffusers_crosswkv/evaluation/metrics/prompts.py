"""The prompts of the images that are measured: image i is scored against line i of a file."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ...files import write_whole

NOT_FOREIGN = ("LATIN", "MODIFIER", "MICRO", "FEMININE ORDINAL", "MASCULINE ORDINAL")  # as names of letters begin


def read_image_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, of which every one counts: an empty line would shift all pairs behind it.

    Lines end at line feeds alone; a Unicode line separator is a part of its prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 text, a line is empty, or there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts at {path}; write one with a prompt per line.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text with one prompt per line ({error}); save it as UTF-8.") from error
    if not text.strip():
        raise ValueError(f"{path} must hold one prompt per line, got none.")
    prompts = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if "" in prompts:
        raise ValueError(
            f"Each line of {path} must be the prompt of one image, but line {prompts.index('') + 1} is empty; "
            "delete it, or write that image's prompt there."
        )
    return prompts


def write_image_prompts(path: Path, prompts: Sequence[str]) -> None:
    """A file for [`read_image_prompts`], written whole."""
    write_whole(path, "".join(f"{prompt}\n" for prompt in prompts).encode())


def check_english(prompts: Sequence[str]) -> None:
    """Refuse prompts of which half of the letters or more are of scripts that an English CLIP has not learned.

    Raises:
        ValueError: so. Other languages in Latin letters cannot be told apart and are let through, and so are single
            words and symbols of other scripts in a sentence.
    """
    for number, prompt in enumerate(prompts):
        letters = [unicodedata.name(letter, "") for letter in prompt if letter.isalpha()]
        other = [name for name in letters if not name.startswith(NOT_FOREIGN)]
        if other and 2 * len(other) >= len(letters):
            raise ValueError(
                f"`clip_score` must have English prompts, but that of image {number} is {prompt!r}; "
                "ask for `clip_score_multilingual`."
            )
