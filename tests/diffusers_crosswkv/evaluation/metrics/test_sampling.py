import functools

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from diffusers_crosswkv.evaluation.metrics import (
    EvaluationConfig,
    SamplingConfig,
    make_samples,
    pipeline_identity,
    protocols,
    read_facts,
    sampling,
)

PROMPTS = ("a handwritten one", "a handwritten two", "a handwritten three")


@pytest.fixture
def sample(make_pipeline, tmp_path):
    """Samples of the tiny pipeline; `sample.made` counts images."""
    pipeline = make_pipeline()

    def call(folder="samples", load=lambda: pipeline, check=None, weights="some", **changes):
        settings = {"num_samples": 5, "batch_size": 2, "num_inference_steps": 2, "guidance_scale": 2.0} | changes
        config, model = SamplingConfig(PROMPTS, **settings), {"name": "tiny", "weights": weights}
        return make_samples(config, tmp_path / folder, model, load, PartialState(cpu=True), check)

    return call


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_an_interrupted_run_goes_on(sample, tmp_path, monkeypatch):
    facts = sample("whole")
    assert (facts.sampler, facts.steps, facts.guidance) == ("DPMSolverMultistepScheduler", 2, 2.0)
    assert read_facts(tmp_path / "whole") == facts and read_facts(tmp_path) is None
    make_batch, made = sampling.make_batch, []

    def interrupted(pipeline, config, batch, *rest):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(batch)
        return make_batch(pipeline, config, batch, *rest)

    monkeypatch.setattr(sampling, "make_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample("parts")
    assert len(pixels(tmp_path / "parts")) == 2
    monkeypatch.setattr(sampling, "make_batch", lambda *call: (made.append(call[2]), make_batch(*call))[1])
    sample("parts")
    assert made == [range(0, 2), range(2, 4), range(4, 5)], "nothing is made twice"
    whole, parts = pixels(tmp_path / "whole"), pixels(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(whole) == 5
    assert all((whole[name] == parts[name]).all() for name in whole)

    def refuse_to_load():
        raise AssertionError("there is nothing to make")

    assert sample("parts", load=refuse_to_load) == facts


def test_an_image_depends_on_its_seed_and_prompt(sample, tmp_path):
    sample("zero", batch_size=1)
    sample("three", batch_size=1, seed=3, num_samples=2)  # image 3 of the first run has its seed and its prompt
    zero, three = pixels(tmp_path / "zero"), pixels(tmp_path / "three")
    assert (three["000000.png"] == zero["000003.png"]).all() and (three["000001.png"] == zero["000004.png"]).all()
    assert (zero["000000.png"] != zero["000003.png"]).any(), "one prompt, two seeds"


def test_other_settings_are_refused(sample):
    sample(num_samples=1, num_inference_steps=1)
    with pytest.raises(
        ValueError, match=r"samples of other settings \(seed: 0, asked 1; num_inference_steps: 1, asked 2\)"
    ):
        sample(num_samples=2, seed=1)
    with pytest.raises(ValueError, match=r"\(weights: some, asked others\); choose another --output_dir"):
        sample(num_samples=1, num_inference_steps=1, weights="others")


def test_more_samples_are_those_of_a_run_that_asked_for_all(sample, tmp_path):
    sample("whole", num_samples=4, num_inference_steps=1)
    sample("grown", num_samples=3, num_inference_steps=1)
    first = (tmp_path / "grown/000000.png").stat().st_mtime_ns
    sample("grown", num_samples=4, num_inference_steps=1)
    whole, grown = pixels(tmp_path / "whole"), pixels(tmp_path / "grown")
    assert len(grown) == 4 and all((whole[name] == grown[name]).all() for name in whole)
    assert (tmp_path / "grown/000000.png").stat().st_mtime_ns == first


def test_an_identity_is_that_of_what_a_folder_holds(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    for name in ("one", "other"):
        pipeline.save_pretrained(tmp_path / name)
    (tmp_path / "other/note.md").write_text("mine")
    identity = pipeline_identity(tmp_path / "one")
    assert identity.startswith("sha256:") and pipeline_identity(tmp_path / "other") == identity
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1)
    pipeline.save_pretrained(tmp_path / "other")
    assert pipeline_identity(tmp_path / "other") != identity
    (tmp_path / "one/scheduler/scheduler_config.json").write_text("{}")
    assert pipeline_identity(tmp_path / "one") != identity


@pytest.mark.parametrize("name", ["grid.png", "samples.json"])
def test_a_folder_of_something_else_is_refused(sample, tmp_path, name):
    path = tmp_path / "samples" / name
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"must be empty or hold samples of an earlier run, but {name} is there"):
        sample()
    assert read_facts(tmp_path / "samples") is None and [*path.parent.iterdir()] == [path]


def test_a_protocol_is_held_before_much_is_made(sample, tmp_path, monkeypatch):
    small = protocols.Protocol(4, "nothing", 1, "none", num_samples=5, steps=2, sampler="DPMSolverMultistepScheduler")
    monkeypatch.setitem(protocols.PROTOCOLS, "small", small)
    config = EvaluationConfig(tmp_path / "samples", tmp_path, ("is",), protocol="small")

    def check(facts, size):
        config.check_samples(5, facts, size)

    with pytest.raises(ValueError, match="steps must be 2, got 3"):
        sample(check=check, num_inference_steps=3)
    assert not (tmp_path / "samples").exists()
    with pytest.raises(ValueError, match=r"size of samples must be \(4, 4\), got \(8, 8\)"):
        sample(check=check)
    assert len(pixels(tmp_path / "samples")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"seed": 2**32 - 3}, "Seeds must be 0 to 4294967295, the last image's too"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_bad_settings(sample, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(**changes)
    assert not (tmp_path / "samples").exists()


def test_a_blackened_image_is_refused(sample, make_pipeline):
    stock = type(make_pipeline())

    class Checked(stock):
        @functools.wraps(stock.__call__)
        def __call__(self, *arguments, **keywords):
            output = super().__call__(*arguments, **keywords)
            output.nsfw_content_detected = [True]
            return output

    pipeline = make_pipeline()
    pipeline.__class__ = Checked
    with pytest.raises(ValueError, match="safety checker has blackened an image of 0 to 1"):
        sample(load=lambda: pipeline)
