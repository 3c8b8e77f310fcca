"""The picture of a loss."""

import numpy as np
import pytest
from PIL import Image

from diffusers_crosswkv.finetuning.loss_plot import columns, plot_loss, smoothed


def test_smoothed_is_the_mean_of_what_was_before():
    values = np.array([4.0, 2.0, 6.0, 8.0])
    assert smoothed(values, 2) == pytest.approx([4, 3, 4, 7])
    assert smoothed(values, 1) == pytest.approx(values)


def test_what_is_not_finite_is_left_out():
    entries = [{"step": 1, "loss": 0.5}, {"step": 1, "validation_loss": 0.4}, {"step": 2, "loss": None}]
    steps, losses = columns(entries, "loss")
    assert (steps.tolist(), losses.tolist()) == ([1], [0.5])


@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_plot_is_drawn(count, tmp_path):
    entries = [{"step": i, "loss": 1 / (i + 1)} for i in range(1, count + 1)]
    entries += [{"step": 0, "validation_loss": 0.7}] if count else []
    plot_loss(tmp_path / "loss.png", entries, "a run")
    with Image.open(tmp_path / "loss.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    assert drawn.shape[1] == 864
    red = (abs(drawn.astype(int) - (209, 73, 91)).sum(-1) < 30).sum()
    assert (red > 20) == (count > 0)
