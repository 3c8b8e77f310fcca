"""What is refused before anything is made or measured."""

import numpy as np
import pytest
import torch
from accelerate import PartialState
from metric_cases import save_clip
from pictures import write_image

from diffusers_crosswkv.evaluation.metrics import EvaluationConfig, SampleFacts, check_weights


@pytest.fixture
def config(tmp_path):
    """Of metrics and a reference of so many images."""

    def make(*metrics, reference=None, count=4, **more):
        if reference is None:
            for number in range(count):
                write_image(tmp_path / f"reference/{number}.png", 6, 6, number)
        return EvaluationConfig(
            tmp_path / "samples", tmp_path / "out", metrics, reference=reference or tmp_path / "reference", **more
        )

    return make


@pytest.mark.parametrize(("metric", "needed"), [("fid", 2), ("sfid", 2), ("kid", 2), ("precision", 4), ("recall", 4)])
def test_too_few_images(config, metric, needed):
    config("is", "cmmd", metric, count=needed).check()
    with pytest.raises(ValueError, match=f"{metric} must have at least {needed} samples, got {needed - 1}; give more"):
        config("is", metric).check_samples(needed - 1, SampleFacts())
    config("is", "cmmd", metric).check_samples(needed, SampleFacts())


def test_too_few_reference_images(config):
    config("fid", "recall", count=3)
    with pytest.raises(ValueError, match="recall must have at least 4 reference images, got 3"):
        config("fid", "recall", count=3).check()
    config("fid", "is", count=3).check()


def test_statistics_that_do_not_suffice(config, tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "statistics.npz", **arrays)
        return tmp_path / "statistics.npz"

    pool = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    config("fid", "is", reference=saved(**pool)).check()
    for metric in ("sfid", "precision", "cmmd"):
        with pytest.raises(
            ValueError, match=f"{metric} must have images to .* holds none, only the statistics mu, sig"
        ):
            config("fid", metric, reference=saved(**pool)).check()
    with pytest.raises(ValueError, match=r"statistics of 2048 dimensions, but those in .*statistics.npz have 64"):
        config("fid", reference=saved(mu=np.zeros(64), sigma=np.eye(64))).check()
    with pytest.raises(ValueError, match=r"holds none; give a reference of images"):
        config("fid", reference=saved(arr_0=np.zeros((0, 4, 4, 3), np.uint8))).check()


def test_a_reference_of_another_size(config):
    message = r"one size, got 8 x 8 and 6 x 6; .*crop and resize .* to that of the samples \(--reference_resize 8\)"
    with pytest.raises(ValueError, match=message):
        config("fid").check_samples(9, SampleFacts(), (8, 8))
    config("fid").check_samples(9, SampleFacts(), (6, 6))
    config("is").check_samples(9, SampleFacts(), (8, 8))
    config("fid", reference_resize=8).check_samples(9, SampleFacts(), (8, 8))


@pytest.mark.parametrize("side", [0, -3])
def test_a_side_that_is_none(config, side):
    with pytest.raises(ValueError, match=f"`reference_resize` must be at least 1 pixel, .* got {side}"):
        config("fid", reference_resize=side).check()


def test_a_damaged_reference(config, tmp_path):
    asked = config("fid")
    (tmp_path / "reference/0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Images must be whole, but 0.png in .*; repair or delete it"):
        asked.check()


def test_weights_are_loaded_before_samples_are_made(config, tokenizer, tmp_path):
    state = PartialState(cpu=True)
    torch.save({"layer": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth must hold Inception's weights"):
        check_weights(config("fid", inception_weights=tmp_path / "other.pth"), state)
    save_clip(tmp_path / "clip", tokenizer)
    clip = {"clip_model": str(tmp_path / "clip"), "cmmd_model": str(tmp_path / "clip"), "prompts": ("one",)}
    check_weights(config("clip_score", "cmmd", **clip), state)
    (tmp_path / "clip/model.safetensors").unlink()
    for metric in ("clip_score", "cmmd"):
        with pytest.raises(OSError, match="clip is neither a folder of a model with safetensors weights"):
            check_weights(config(metric, **clip), state)
