"""A pytest plugin, loaded before any test module: Diffusers' tests get our U-Net where they ask for the stock one.

    python -m pytest -p diffusers_crosswkv.evaluation.diffusers_tests_plugin tests/models/unets/...

Their U-Nets are tiny, a few channels per block, and say nothing about CrossWKV: the size of its heads then follows
from the widths.
"""

import functools
import math

import diffusers

from ..models import DIR7UNet2DConditionModel

STOCK_WIDTHS = (320, 640, 1280, 1280)


def put_in_place_of_stock() -> None:
    """`diffusers.UNet2DConditionModel` is ours from now on."""
    init = DIR7UNet2DConditionModel.__init__

    @functools.wraps(init)
    def init_with_fitting_heads(self, *args, **kwargs):
        widths = kwargs.get("block_out_channels", STOCK_WIDTHS)
        kwargs.setdefault("crosswkv_head_dim", math.gcd(64, *widths))
        init(self, *args, **kwargs)

    DIR7UNet2DConditionModel.__init__ = init_with_fitting_heads
    diffusers.UNet2DConditionModel = DIR7UNet2DConditionModel


put_in_place_of_stock()
