"""The model card says what is known, in the form that the Hub reads."""

import dataclasses
import json
import logging
import re
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from diffusers_crosswkv.hub import (
    FROM_SCRATCH,
    Metric,
    ModelFacts,
    load_facts,
    make_model_card,
    read_saved_pipeline,
    save_facts,
)

ROOT = Path(__file__).parents[3]
FACTS = ModelFacts(
    name="Tiny digits",
    summary="Digits | of 8 x 8 pixels.",
    license="apache-2.0",
    language=("en", "zh"),
    base_model="someone/base",
    datasets=("someone/digits",),
    data="1,797 digits",
    captions="from templates",
    steps=1200,
    batch_size=32,
    hardware="1 of 2 CPU cores",
    training_seconds=331.0,
    metrics=(
        Metric("read as asked", "accuracy", 0.98, "400 generated digits", "generated", "make quickstart"),
        Metric("FID", "fid", 12.5, "digits", "someone/digits", "scripts | evaluate.py"),
    ),
    limits=("It draws digits and nothing else.",),
    example_prompt='a "handwritten" 七',
    guidance_scale=2.0,
    num_inference_steps=50,
)


def parsed(card):
    """The card as the Hub gets it: text, then front matter."""
    text = str(card)
    return text, ModelCard(text).data.to_dict()


@pytest.fixture
def saved(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "saved")
    return read_saved_pipeline(tmp_path / "saved")


def test_front_matter_is_complete(saved, caplog):
    card = make_model_card(FACTS, "writer/digits", saved, {"a seven": "images/7.png"}, "images/grid.png")
    with caplog.at_level(logging.WARNING):  # a malformed model-index is dropped with a log line only
        _, data = parsed(card)
    assert not caplog.records
    index = data.pop("model-index")
    assert data == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "crosswkv", "rwkv"],
        "license": "apache-2.0",
        "language": ["en", "zh"],
        "base_model": "someone/base",
        "datasets": ["someone/digits"],
        "metrics": ["accuracy", "fid"],
        "widget": [{"text": "a seven", "output": {"url": "images/7.png"}}],
    }
    assert [entry["name"] for entry in index] == ["Tiny digits"]
    results = index[0]["results"]
    assert [result["task"] for result in results] == [{"type": "text-to-image"}] * 2
    assert results[0]["dataset"] == {"name": "400 generated digits", "type": "generated"}
    assert results[0]["metrics"] == [{"type": "accuracy", "value": 0.98, "name": "read as asked"}]
    assert ModelCard(str(card)).data.eval_results[1].metric_value == 12.5


def test_text_says_what_is_known(saved):
    text, data = parsed(make_model_card(FACTS, "writer/digits", saved, grid="images/grid.png"))
    assert data["widget"] == [{"text": 'a "handwritten" 七'}]
    for expected in (
        "![Pictures that the model made](images/grid.png)",
        "| pipeline | `DIR7Pipeline` |",
        "| text encoder | `CLIPTextModel` |",
        "| image space | pixels |",
        "| fusion of text and image | state |",
        "| base model | someone/base |",
        "| steps | 1,200 |",
        "| time | 6 min |",
        "| read as asked | 0.98 | 400 generated digits | make quickstart |",
        "| FID | 12.5 | digits | scripts \\| evaluate.py |",
        "- It draws digits and nothing else.",
        "`apache-2.0`",
    ):
        assert expected in text
    assert "unknown" not in text
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_parameters_are_those_of_the_files(make_pipeline, saved):
    pipeline = make_pipeline()
    unet, text_encoder = (sum(p.numel() for p in part.parameters()) for part in (pipeline.unet, pipeline.text_encoder))
    text, _ = parsed(make_model_card(FACTS, "writer/digits", saved))
    assert f"| parameters | {unet:,} in the U-Net, {unet + text_encoder:,} in all |" in text


def test_examples_are_six_lines_of_python_that_load_the_repository(saved):
    text, _ = parsed(make_model_card(FACTS, "writer/digits", saved))
    with_package, without = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for code in (with_package, without):
        compile(code, "card", "exec")
        assert len(code.splitlines()) <= 6
        assert 'from_pretrained("writer/digits"' in code
        assert 'pipe("a \\"handwritten\\" 七", guidance_scale=2.0, num_inference_steps=50)' in code
    assert "import diffusers_crosswkv" in with_package and "trust_remote_code" not in with_package
    assert 'custom_pipeline="pipeline", trust_remote_code=True' in without and "diffusers_crosswkv" not in without


def test_a_stock_pipeline_needs_no_code_of_its_own(saved):
    text, _ = parsed(make_model_card(FACTS, "writer/x", dataclasses.replace(saved, has_pipeline_code=False)))
    assert '"writer/x", trust_remote_code=True)' in text
    assert "custom_pipeline" not in text


def test_what_is_not_known_is_not_invented():
    text, data = parsed(make_model_card(ModelFacts(), "writer/digits"))
    assert data == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "crosswkv", "rwkv"],
    }
    training = text.partition("## Training")[2].partition("## Results")[0]
    rows = [line for line in training.splitlines() if line.startswith("| ")][1:]
    assert rows and all(line.endswith("| unknown |") for line in rows)
    assert "Nothing has been measured." in text
    assert "Unknown: ask the author" in text
    assert "## Model\n" not in text


def test_from_scratch_is_no_base_model():
    text, data = parsed(make_model_card(ModelFacts(base_model=FROM_SCRATCH), "writer/digits"))
    assert "base_model" not in data
    assert "| base model | from scratch |" in text


def test_facts_as_a_file(tmp_path):
    save_facts(FACTS, tmp_path / "facts.json")
    assert load_facts(tmp_path / "facts.json") == FACTS
    save_facts(ModelFacts(steps=3), tmp_path / "facts.json")
    assert json.loads((tmp_path / "facts.json").read_text()) == {"steps": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must hold a JSON object"),
        ("[1]", "must hold a JSON object"),
        ('{"step": 3}', r"must hold fields of ModelFacts, \['step'\] is none"),
        ('{"metrics": [{"nam": 1}]}', "must hold fields of Metric"),
        ('{"license": "Apache-2.0"}', "`license` must be the Hub's identifier, in lower case, got 'Apache-2.0'"),
        ('{"license": "other"}', "needs `license_name` and `license_link`"),
        ('{"language": ["English"]}', "ISO 639 codes such as 'en', got 'English'"),
        ('{"datasets": ["my digits"]}', "`datasets` must be a Hub id such as 'user/name', got 'my digits'"),
        ('{"base_model": "a/b/c"}', "`base_model` must be a Hub id"),
        ('{"steps": 0}', "`steps` must be at least 1, got 0"),
    ],
)
def test_facts_that_cannot_be_right(tmp_path, text, message):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_facts(tmp_path / "facts.json")


def test_the_template_ships_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"model_card.md": "diffusers_crosswkv/hub/model_card.md"}
    assert (ROOT / "model_card.md").is_file()
