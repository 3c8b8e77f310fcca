"""Image files of any kind become 8-bit RGB or grey pictures, upright and opaque."""

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .examples import BrokenImage
from .records import Size

MODES = {1: "L", 3: "RGB"}  # by number of channels
ORIENTATION = 0x0112  # of EXIF
TURNED = (5, 6, 7, 8)  # orientations in which height and width are exchanged
WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_size(file: BinaryIO) -> Size:
    """(height, width) of an upright image, from the file's header alone.

    Raises:
        BrokenImage: this is no image that can be read, or it has too many pixels.
    """
    try:
        with open_checked(file) as image:
            # the EXIF block of a PNG may lie behind the pixels, and asking for it would decode them
            turned = "exif" in image.info and image.getexif().get(ORIENTATION) in TURNED
            width, height = image.size
    except BrokenImage:
        raise
    except Exception as error:
        raise BrokenImage(reason(error)) from error
    return (width, height) if turned else (height, width)


def decode(file: BinaryIO, channels: int, target: Size) -> Image.Image:
    """An upright 8-bit picture, `RGB` (3 channels) or `L` (1); transparent parts are white, animations are frame one.

    A JPEG that is more than twice as large as `target` is decoded at 1/2, 1/4 or 1/8, never below twice the target.

    Raises:
        BrokenImage: the file cannot be decoded to its end, has too many pixels, or has pixels of an unknown range.
    """
    try:
        with open_checked(file) as image:
            side = 2 * max(target)
            image.draft(MODES[channels], (side, side))
            upright = ImageOps.exif_transpose(image)
            return to_mode(upright, MODES[channels])
    except BrokenImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on files that are damaged in their own way
        raise BrokenImage(reason(error)) from error


def open_checked(file: BinaryIO) -> Image.Image:
    """Image.open with one rule for large images: above Pillow's `Image.MAX_IMAGE_PIXELS` they count as broken.

    Pillow itself warns above the limit and raises above twice of it, so that what happens would hang on the filters
    for warnings of whoever runs this.
    """
    try:
        image = Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BrokenImage(f"{error} (raise PIL.Image.MAX_IMAGE_PIXELS to use it)") from error
    pixels, limit = image.size[0] * image.size[1], Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise BrokenImage(f"has {pixels} pixels, more than PIL.Image.MAX_IMAGE_PIXELS ({limit})")
    return image


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise BrokenImage("has floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode in WIDE_GREY:  # Pillow would cut values above 255
        image = Image.fromarray(((np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message names the open file
        return "cannot be read: no image of a kind that Pillow knows"
    return f"cannot be read: {str(error) or type(error).__name__}"
