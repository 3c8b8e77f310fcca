import pytest
import torch

from diffusers_crosswkv.data.scene_splits import EVERYTHING, Scenes, Split
from diffusers_crosswkv.data.scenes import COLOURS, SHAPES, SIZES
from diffusers_crosswkv.evaluation.judge_accuracy import measure_judge
from diffusers_crosswkv.evaluation.scene_cnn import SceneCNN, cell_crops, disturb, targets_of, train_scene_cnn


@pytest.fixture(scope="module")
def rows():
    """What a briefly trained CNN and the judge read in 300 pictures, by their blur and noise."""
    rows = measure_judge(train_scene_cnn(32, steps=250, progress=False), 32, count=300)
    return {(row.blur, row.noise): row for row in rows}


def test_targets_name_every_object_in_its_cell():
    scenes = Scenes(32, EVERYTHING)
    for i in range(20):
        targets = targets_of(scenes.scene(i)).tolist()
        filled = {divmod(cell, 3): target for cell, target in enumerate(targets) if target[0]}
        assert filled == {
            x.cell: [1 + list(COLOURS).index(x.colour), SHAPES.index(x.shape), SIZES.index(x.size)]
            for x in scenes.scene(i).objects
        }


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_crops_show_their_own_cell(resolution):
    scenes = Scenes(resolution, Split(num_objects=(3,)))
    image, scene = scenes.image(0), scenes.scene(0)
    crops = cell_crops(image[None], scenes.grid)
    assert crops.shape == (scenes.grid**2, 3, 16, 16)
    coloured = (crops.amax(1) - crops.amin(1) > 0.5).flatten(1).float().mean(1) > 0.08
    assert [divmod(i, scenes.grid) for i in coloured.nonzero().flatten().tolist()] == [x.cell for x in scene.objects]


def test_judge_and_cnn_agree_on_clean_pictures(rows):
    clean = rows[0, 0]
    assert clean.count == 300
    assert clean.judge >= 0.995
    assert clean.cnn >= 0.97
    assert clean.agreement >= 0.97


def test_the_judge_bears_some_blur_and_noise(rows):
    assert rows[0.4, 0].judge >= 0.95
    assert rows[0, 0.05].judge >= 0.95
    assert rows[1.0, 0].judge < rows[0.4, 0].judge


def test_an_untrained_cnn_reads_nothing_right():
    assert measure_judge(SceneCNN().eval(), 32, count=50)[0].cnn == 0


def test_disturb():
    image = torch.zeros(1, 3, 9, 9)
    image[:, :, 4, 4] = 1
    assert torch.equal(disturb(image, 0, 0), image)
    blurred = disturb(image, 0.8, 0)
    torch.testing.assert_close(blurred.sum(), image.sum())
    variance = (blurred[0, 0].sum(0) * (torch.arange(9) - 4) ** 2).sum()
    torch.testing.assert_close(variance, torch.tensor(0.64), rtol=0.05, atol=0)
    noisy = disturb(torch.zeros(4, 3, 32, 32), 0, 0.1)
    assert 0.095 < noisy.std() < 0.105
    assert torch.equal(noisy, disturb(torch.zeros(4, 3, 32, 32), 0, 0.1))
