"""The README's example is code that runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(make_pipeline, tmp_path, monkeypatch, capsys):
    pipeline = make_pipeline()
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("runs/quickstart/pipeline")
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    names: dict = {}
    exec(examples[0], names)
    assert names["image"].size == (8, 8)
    assert len(names["images"]) == 4
    assert re.fullmatch(r"\d+ bytes, whatever the prompt's length\n", capsys.readouterr().out)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link):
    assert (README.parent / link).exists()
