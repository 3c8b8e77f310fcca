import zipfile

import numpy as np
import pytest
from pictures import picture, write_image
from PIL import Image

from diffusers_crosswkv.evaluation.metrics import open_images
from diffusers_crosswkv.evaluation.metrics.image_sets import SomeImages


def save_batch(path, count=7, side=5, compressed=False, **more):
    images = np.random.RandomState(0).randint(0, 256, (count, side, side + 1, 3)).astype(np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, images, **more)
    return images


@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch_is_read_in_parts(tmp_path, compressed):
    images = save_batch(tmp_path / "a.npz", compressed=compressed)
    batch = open_images(tmp_path / "a.npz")
    assert (len(batch), batch.size, batch.gaussians) == (7, (5, 6), {})
    np.testing.assert_array_equal(batch.read(0, 7), images)
    np.testing.assert_array_equal(batch.read(2, 5), images[2:5])
    assert len({batch.identity(0, 2), batch.identity(2, 4)}) == 2


def test_a_batch_is_read_through_once(tmp_path, monkeypatch):
    """Each call that starts anew reads, and decompresses, all that lies before."""
    images = save_batch(tmp_path / "a.npz", compressed=True)
    batch, opened, open_it = open_images(tmp_path / "a.npz"), [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *call: (opened.append(1), open_it(*call))[1])
    for index in (0, 2, 5):
        np.testing.assert_array_equal(batch.read(index, index + 1), images[index : index + 1])
    assert len(opened) == 1
    np.testing.assert_array_equal(batch.read(1, 3), images[1:3])
    assert len(opened) == 2, "backwards"


def test_a_damaged_batch(tmp_path):
    save_batch(tmp_path / "a.npz", side=40)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-2000] ^= 1  # a pixel
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.npz is damaged at its images 0 to 6 \(Bad CRC"):
        open_images(tmp_path / "a.npz").read(0, 7)


def test_some_images_of_a_set(tmp_path):
    images = save_batch(tmp_path / "a.npz")
    some = SomeImages(open_images(tmp_path / "a.npz"), [0, 3, 4, 6])
    assert (len(some), some.size) == (4, (5, 6))
    np.testing.assert_array_equal(some.read(1, 4), images[[3, 4, 6]])
    assert some.identity(0, 2) != some.identity(1, 3)


def test_statistics_of_a_reference_batch(tmp_path):
    covariance = np.diag(np.arange(1.0, 4))
    more = {"mu": np.zeros(3), "sigma": covariance, "mu_s": np.ones(2), "sigma_s": np.eye(2)}
    save_batch(tmp_path / "a.npz", **more)
    gaussians = open_images(tmp_path / "a.npz").gaussians
    np.testing.assert_allclose(gaussians["pool"].factor.T @ gaussians["pool"].factor, covariance, atol=1e-12)
    np.testing.assert_allclose(gaussians["spatial"].mean, 1)
    np.savez(tmp_path / "b.npz", **more)
    assert len(open_images(tmp_path / "b.npz")) == 0


def test_batches_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(ValueError, match=r"must be an .npz batch of the ADM suite"):
        open_images(tmp_path / "text.npz")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"must be `\[N, H, W, 3\]` uint8 in C order, got \[2, 4, 4, 3\] float32"):
        open_images(tmp_path / "floats.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match=r"got \[2\] object"):
        open_images(tmp_path / "objects.npz")
    np.savez(tmp_path / "code.npz", mu=np.array([print], dtype=object), sigma=np.array([[print]], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _ = open_images(tmp_path / "code.npz").gaussians
    np.savez(tmp_path / "flat.npz", mu=np.zeros(3), sigma=np.zeros(3))
    with pytest.raises(ValueError, match=r"a mean `\[D\]` and its covariance `\[D, D\]`, got \[3\] and \[3\]"):
        open_images(tmp_path / "flat.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"must hold arr_0 or statistics, got x.npy"):
        open_images(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match="no images at"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must be a folder or an .npz batch"):
        open_images(write_image(tmp_path / "one.png"))


def test_a_folder(tmp_path):
    picture(6, 9, 1).save(tmp_path / "b.png")
    picture(6, 9, 2).convert("L").save(tmp_path / "a.png")
    write_image(tmp_path / "deeper/c.png", 6, 9, 3)
    folder = open_images(tmp_path)
    assert (len(folder), folder.size, folder.resize) == (3, (6, 9), "none")
    images = folder.read(0, 3)
    assert (images.shape, images.dtype) == ((3, 6, 9, 3), np.uint8)
    np.testing.assert_array_equal(images[1], np.asarray(picture(6, 9, 1)))
    assert (images[0][..., 0] == images[0][..., 2]).all(), "grey"
    before = folder.identity(0, 3)
    write_image(tmp_path / "a.png", 6, 9, 4)
    assert folder.identity(0, 3) != before and folder.identity(1, 3) == open_images(tmp_path).identity(1, 3)


def test_numbers_in_names_are_ordered_as_numbers(tmp_path):
    names = ["0.png", "2.png", "10.png", "a/img_9.png", "a/img_010.png", "a/img_11.png"]
    for name in reversed(names):
        write_image(tmp_path / name)
    assert open_images(tmp_path).files == names


def test_a_damaged_image(tmp_path):
    write_image(tmp_path / "0.png")
    whole = write_image(tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"Images must be whole, but 1.png in {tmp_path} .*; repair or delete it"):
        open_images(tmp_path).read(0, 2)
    (tmp_path / "0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"but 0.png in"):
        _ = open_images(tmp_path).size


def test_a_folder_of_sizes(tmp_path):
    write_image(tmp_path / "a.png", 6, 9)
    write_image(tmp_path / "b.png", 9, 9)
    with pytest.raises(ValueError, match=r"one size, got 9 x 9 of b.png .* and 6 x 9 of a.png; .*--reference_resize"):
        open_images(tmp_path).read(0, 2)
    with pytest.raises(FileNotFoundError, match="There are no images in"):
        (tmp_path / "empty").mkdir()
        open_images(tmp_path / "empty")


@pytest.mark.parametrize("shape", [(70, 50), (16, 40), (33, 16)])
def test_resizing_is_that_of_adm(tmp_path, shape):
    """Halved by boxes while twice as large, then bicubic so that the shorter side fits, then the centre."""
    image = write_image(tmp_path / "a.png", *shape)
    found = open_images(tmp_path, resize=16).read(0, 1)[0]
    expected = Image.open(image)
    while min(expected.size) >= 32:
        expected = expected.resize(tuple(x // 2 for x in expected.size), Image.BOX)
    scale = 16 / min(expected.size)
    expected = np.asarray(expected.resize(tuple(round(x * scale) for x in expected.size), Image.BICUBIC))
    y, x = (expected.shape[0] - 16) // 2, (expected.shape[1] - 16) // 2
    np.testing.assert_array_equal(found, expected[y : y + 16, x : x + 16])


def test_batches_are_not_resized(tmp_path):
    save_batch(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="cannot be resized"):
        open_images(tmp_path / "a.npz", resize=4)
