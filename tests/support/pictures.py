"""Image files that tests of data write."""

import io

import numpy as np
from PIL import Image


def picture(height=40, width=60, seed=0):
    """Smooth colours, so that JPEG and resizing keep them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_bytes(height=40, width=60, seed=0, form="PNG", **options):
    file = io.BytesIO()
    picture(height, width, seed).save(file, form, **options)
    return file.getvalue()


def write_image(path, height=40, width=60, seed=0, caption=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(height, width, seed).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
