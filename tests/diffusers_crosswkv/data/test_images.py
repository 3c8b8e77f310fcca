import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from pictures import image_bytes, picture
from PIL import Image

from diffusers_crosswkv.data.examples import BrokenImage
from diffusers_crosswkv.data.images import decode, read_size


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(content, channels=3, target=(40, 60)):
    """`[height, width, channels]`, -1 to 255."""
    image = decode(io.BytesIO(content), channels, target)
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    assert read_size(io.BytesIO(content)) == (image.height, image.width)
    return np.asarray(image).astype(int).reshape(image.height, image.width, channels)


def assert_alike(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, form):
    upright = picture(40, 60)
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # of the upright image, to how it is stored
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, form, exif=exif, **({"quality": 95} if form != "PNG" else {}))
    assert_alike(decoded(content), np.asarray(upright).astype(int), 4)


def test_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert decoded(saved(image, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert decoded(saved(image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert decoded(saved(image, "GIF")).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (0, 0, 255, 0)), ("LA", (0, 0))])
def test_what_is_transparent_is_white(mode, value):
    assert (decoded(saved(Image.new(mode, (3, 2), value))) == 255).all()
    half = decoded(saved(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert half.tolist() == [[[127, 127, 127]]]


def test_sixteen_bits_keep_their_range():
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        for channels in (1, 3):
            found = decoded(saved(Image.fromarray(wide), form), channels)
            assert (found == np.arange(256).reshape(16, 16, 1)).all()


def test_sixteen_bits_of_colour():
    row = b"\x00" + struct.pack(">6H", 65535, 0, 0, 0, 32896, 65535)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decoded(content).tolist() == [[[255, 0, 0], [0, 128, 255]]]


def test_cmyk_grey_and_black_and_white():
    assert_alike(decoded(saved(picture().convert("CMYK"), "JPEG", quality=95)), np.asarray(picture()).astype(int), 6)
    assert (decoded(saved(Image.new("L", (3, 2), 77))) == 77).all()
    assert (decoded(saved(Image.new("1", (3, 2), 1)), channels=1) == 255).all()


def test_one_channel_of_a_colour_image():
    expected = np.asarray(picture().convert("L")).astype(int)[..., None]
    assert_alike(decoded(image_bytes(), channels=1), expected, 1)


def test_a_jpeg_is_decoded_smaller_but_never_below_twice_the_target():
    large = image_bytes(1000, 1500, form="JPEG")
    image = decode(io.BytesIO(large), 3, (100, 120))
    assert 240 <= image.height < 1000
    assert image.width / image.height == pytest.approx(1.5, abs=0.02)


def test_broken_files():
    png, jpeg = image_bytes(400, 600), image_bytes(400, 600, form="JPEG")
    for content in (b"", b"no image", png[: len(png) // 2], jpeg[: len(jpeg) // 2], png[:200] + png[260:]):
        with pytest.raises(BrokenImage, match="cannot be read"):
            decode(io.BytesIO(content), 3, (40, 60))
    for content in (b"", b"no image", b"<html>404</html>"):
        with pytest.raises(BrokenImage, match="no image of a kind that Pillow knows"):
            read_size(io.BytesIO(content))
    floating = saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(BrokenImage, match="floating-point pixels"):
        decode(io.BytesIO(floating), 3, (2, 2))


@pytest.mark.parametrize("filters", ["error", "ignore"])
@pytest.mark.parametrize("limit", [2000, 1000])  # Pillow warns, and Pillow raises
def test_too_many_pixels_are_one_finding_whatever_becomes_of_warnings(monkeypatch, filters, limit):
    content = image_bytes(40, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        for read in (read_size, lambda file: decode(file, 3, (40, 60))):
            with pytest.raises(BrokenImage, match=r"PIL\.Image\.MAX_IMAGE_PIXELS"):
                read(io.BytesIO(content))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2400)
    assert torch.from_numpy(decoded(content)).shape == (40, 60, 3)
