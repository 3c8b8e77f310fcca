"""DIR-7 for Diffusers: text-to-image with RWKV-7's matrix state in the place of softmax cross-attention."""

import sys

from diffusers import ModelMixin

from .conversion import convert_unet
from .models import CrossWKV, CrossWKVAttnProcessor, DIR7UNet2DConditionModel, PromptState
from .pipelines import DIR7Img2ImgPipeline, DIR7InpaintPipeline, DIR7Pipeline
from .presets import load_preset
from .registration import register

__version__ = "0.1.0.dev0"
__all__ = [
    "CrossWKV",
    "CrossWKVAttnProcessor",
    "DIR7Img2ImgPipeline",
    "DIR7InpaintPipeline",
    "DIR7Pipeline",
    "DIR7UNet2DConditionModel",
    "ModelMixin",  # Diffusers looks the base class of our components up in this namespace
    "PromptState",
    "convert_unet",
    "load_preset",
]

register(sys.modules[__name__])
