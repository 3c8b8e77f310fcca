"""What a protocol fills in, and what references it takes."""

import dataclasses

import numpy as np
import pytest
from pictures import write_image

from diffusers_crosswkv.evaluation.metrics import PROTOCOLS, EvaluationConfig, fill_in


@pytest.mark.parametrize(
    ("name", "side", "images", "resize"),
    [
        ("cifar10", 32, 50_000, {}),
        ("celeba64", 64, 202_599, {"reference_resize": 64}),
        ("imagenet256", 256, 1_281_167, {}),
        ("imagenet512", 512, 1_281_167, {}),
    ],
)
def test_the_papers(name, side, images, resize):
    fixed = {"scheduler": "DDPMScheduler", "steps": 250, "num_samples": 10_000, "num_prompts": 1_000}
    assert PROTOCOLS[name].options() == fixed | {"height": side, "width": side} | resize
    assert PROTOCOLS[name].reference_images == images


def test_what_is_not_given_is_filled_in():
    given = {"steps": None, "num_prompts": 1_000, "guidance_scale": None, "reference_resize": None}
    assert fill_in("celeba64", given) == {"steps": 250, "num_prompts": 1_000, "reference_resize": 64}
    assert fill_in("cifar10", given) == {"steps": 250, "num_prompts": 1_000}
    assert fill_in("cifar10", {"reference_resize": 16}) == {}


def test_what_contradicts_is_refused():
    with pytest.raises(ValueError) as refused:
        fill_in("cifar10", {"steps": 50, "num_samples": 10_000, "scheduler": None, "num_prompts": 0})
    assert str(refused.value) == (
        "This is not the protocol cifar10: --steps must be 250, got 50; --num_prompts must be 1000, got 0. "
        "Leave that to --protocol, or measure without it."
    )


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Of a reference, by a protocol of 6 images of 4 pixels."""
    small = dataclasses.replace(PROTOCOLS["celeba64"], side=4, reference_images=6)
    monkeypatch.setitem(PROTOCOLS, "celeba64", small)

    def call(*metrics, reference):
        EvaluationConfig(tmp_path, tmp_path, metrics, reference=reference, protocol="celeba64").check()

    return call


def batch(folder, count=None, statistics=False):
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048)} if statistics else {}
    if count is not None:
        arrays["arr_0"] = np.zeros((count, 4, 4, 3), np.uint8)
    np.savez(folder / "reference.npz", **arrays)
    return folder / "reference.npz"


def test_the_images_of_a_reference_are_counted(check, tmp_path):
    for number in range(6):
        write_image(tmp_path / f"images/{number}.png", 4, 4, number)
    check("fid", reference=tmp_path / "images")
    check("fid", reference=batch(tmp_path, 6))
    (tmp_path / "images/5.png").unlink()
    for short in (tmp_path / "images", batch(tmp_path, 5)):
        with pytest.raises(ValueError, match=r"not the protocol celeba64: reference images must be 6, got 5\."):
            check("fid", reference=short)


def test_statistics_do_not_tell_of_how_many_images(check, tmp_path, monkeypatch):
    """Those beside them are all, or as many as ADM's batches hold."""
    check("fid", reference=batch(tmp_path, statistics=True))
    check("fid", reference=batch(tmp_path, 6, statistics=True))
    with pytest.raises(ValueError, match="reference images beside statistics must be 10000, got 5"):
        check("fid", reference=batch(tmp_path, 5, statistics=True))
    monkeypatch.setattr("diffusers_crosswkv.evaluation.metrics.protocols.MANIFOLD_IMAGES", 5)
    check("fid", reference=batch(tmp_path, 5, statistics=True))
