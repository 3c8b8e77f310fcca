"""The network, with random weights: torch-fidelity's features of the same weights are kept in a file."""

import json

import numpy as np
import pytest
import torch
from metric_cases import RECORDED, inception_state, two_images
from pictures import picture
from torch.nn import functional as F

from diffusers_crosswkv.evaluation.metrics import weights
from diffusers_crosswkv.evaluation.metrics.extractors import InceptionFeatures
from diffusers_crosswkv.evaluation.metrics.inception import SPATIAL_SIZE, tf1_resize

FIDELITY = json.loads(RECORDED.read_text(encoding="utf-8"))["images"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_state(), path)
    return path


@pytest.fixture(scope="module")
def network(path):
    return weights.load_inception(path)


@pytest.mark.parametrize("case", [0, 1])
def test_features_are_those_of_torch_fidelity(network, case):
    with torch.inference_mode():
        pool, spatial = network(two_images()[case])
        logits = network.logits(pool)
    assert (pool.shape, spatial.shape, logits.shape) == ((1, 2048), (1, SPATIAL_SIZE), (1, 1008))
    assert SPATIAL_SIZE == 2023
    for name, mine, step in (("pool", pool, 41), ("logits", logits, 41), ("spatial", spatial, 17)):
        torch.testing.assert_close(mine[0, ::step], torch.tensor(FIDELITY[case][name]), rtol=1e-4, atol=1e-5)


def test_spatial_features_have_channels_last(network):
    """ADM's `spatial[..., :7]` of `[N, 17, 17, C]`, flattened: number 7 (17 y + x) + c."""
    seen = []
    with torch.inference_mode(), network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: seen.append(call[2])):
        spatial = network(two_images()[0]).spatial[0]
    for y, x, c in ((0, 0, 0), (0, 0, 6), (0, 1, 0), (1, 0, 0), (16, 16, 6), (5, 11, 3)):
        assert spatial[7 * (17 * y + x) + c] == seen[0][0, c, y, x]
    assert seen[0].shape == (1, 192, 17, 17)


def test_features_of_a_batch(network, path):
    """Channels, order and dtype on the way from `[N, H, W, 3]` bytes to the network."""
    images = np.stack([np.asarray(picture(40, 48, seed)) for seed in range(2)])
    features = InceptionFeatures(path, torch.device("cpu"))(images, 0)
    with torch.inference_mode():
        pool = network(torch.tensor(images[1]).permute(2, 0, 1)[None]).pool
    torch.testing.assert_close(features["pool"][1:], pool, rtol=1e-4, atol=1e-5)
    assert features["spatial"].shape == (2, SPATIAL_SIZE)


def resized_by_hand(image, side):
    """TensorFlow 1's kernel, pixel by pixel: in = out * (in_size / out_size), clamped above, no half pixels."""
    height, width = image.shape
    scale_y, scale_x = np.float32(height / side), np.float32(width / side)
    out = np.empty((side, side), np.float32)
    for i in range(side):
        for j in range(side):
            y, x = np.float32(i) * scale_y, np.float32(j) * scale_x
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = y - np.float32(y0), x - np.float32(x0)
            top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * dx
            bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * dx
            out[i, j] = top + (bottom - top) * dy
    return out


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (29, 29), (64, 51), (1, 1)])
def test_resize_is_that_of_tensorflow_1(shape):
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.float32)
    mine = tf1_resize(torch.from_numpy(image)[None, None], 29)[0, 0]
    np.testing.assert_array_equal(mine.numpy(), resized_by_hand(image, 29))
    if shape not in ((29, 29), (1, 1)):  # what PyTorch does by default is something else
        default = F.interpolate(torch.from_numpy(image)[None, None], (29, 29), mode="bilinear", antialias=True)
        assert (mine - default[0, 0]).abs().max() > 1


def test_weights_that_are_missing_or_wrong(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*nowhere.*weights-inception-2015-12-05"):
        weights.find_inception_weights(tmp_path / "nowhere")
    for name, content in (("other.pth", {"a": torch.zeros(1)}), ("code.pth", test_weights_that_are_missing_or_wrong)):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match="must hold Inception's weights as torch-fidelity converted them"):
            weights.load_inception(tmp_path / name)


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(weights.hub, "download_url_to_file", fail)
    message = r"could not be downloaded \(no route\); download https://\S+6726825d.pth where .* --inception_weights"
    with pytest.raises(OSError, match=message):
        weights.find_inception_weights(None)
    cached = tmp_path / "hub/checkpoints" / weights.INCEPTION_FILE
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(b"there")
    assert weights.find_inception_weights(None) == cached
