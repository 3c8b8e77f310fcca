import pytest

from diffusers_crosswkv.generation import read_prompts


def test_prompts_are_the_lines_of_a_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  zwei, drei \r\n手写的数字三", encoding="utf-8-sig")
    assert read_prompts(path) == ("one", "zwei, drei", "手写的数字三")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xe9t\xe9", "must be UTF-8 text with one prompt per line"),
        (b"\n \n", "must hold one prompt .*, got none"),
    ],
)
def test_unreadable_files_of_prompts(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        read_prompts(tmp_path / "lost.txt")
