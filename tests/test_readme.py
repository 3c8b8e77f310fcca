"""The README's example is code that runs."""

import json
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
    exec(examples[1], names)
    assert names["student"].config.block_out_channels == (64, 128)
    assert re.fullmatch(r"\d+ bytes, whatever the prompt's length\n", capsys.readouterr().out)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link):
    assert (README.parent / link).exists()


def test_figures_are_those_of_the_rows():
    rows = (README.parent / "benchmarks/quickstart/rows.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[-1])
    found = row["agreement"]
    languages = ", ".join(f"{name} {share:.1%}" for name, share in found["per_language"].items())
    text = README.read_text(encoding="utf-8")
    for figure in (
        f"| {found['overall']:.1%} of {found['count']} |",
        f"| {languages} |",
        f"| {row['held_out_accuracy']:.1%} |",
        f"| {row['training_seconds']:.0f} s |",
        f"| {row['generate_seconds']:.0f} s |",
    ):
        assert figure in text
