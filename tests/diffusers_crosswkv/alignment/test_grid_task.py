import pytest
import torch

from diffusers_crosswkv.alignment.grid_task import (
    NAMES,
    GridReader,
    captions_with_cells,
    make_layers,
    measure_reading,
    targets_of,
)
from diffusers_crosswkv.data.captions import PLACES, Description, Mention
from diffusers_crosswkv.data.scene_splits import SPLITS


def test_targets():
    mentions = (Mention("green", "cross", None, (0, 1)), Mention("red", "ring", "large", (1, 0)))
    assert targets_of(Description("", "English", "medium", mentions)).tolist() == [
        [0, 0, 0],
        [2, 4, 0],
        [1, 1, 2],
        [0, 0, 0],
    ]


def test_captions_are_those_that_name_cells():
    stream = captions_with_cells(SPLITS["same"], 0)
    for _ in range(50):
        caption, targets = next(stream)
        assert caption
        assert 1 <= (targets[:, 0] > 0).sum() <= 3


@pytest.mark.parametrize("layer", ["softmax", "state", "prefix"])
def test_the_reader_takes_any_layer(layer):
    logits = GridReader(make_layers(layer))(["top left a red ring", "un carré vert en bas à droite. le fond est gris"])
    assert [x.shape for x in logits] == [(2, 4, 1 + len(names)) for names in NAMES]
    assert all(x.isfinite().all() for x in logits)


def test_a_reader_begins_to_learn():
    shares = measure_reading(make_layers("state"), steps=200, batch_size=32, count=60, progress=False)
    assert shares["same"] > 4 / (6 * 4 * 3)
    assert list(shares) == ["same", *(f"{length}, {place}" for length in ("long", "very long") for place in PLACES)]


def test_options_reach_the_layer():
    assert torch.equal(make_layers("state", 1)[0].norm.bias, torch.zeros(48))
    assert make_layers("state", 1, output_norm=False)[0].norm.bias is None
