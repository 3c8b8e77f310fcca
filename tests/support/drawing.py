"""How tests of pipelines draw: few steps, tensors, a seed per image."""

import torch

PROMPTS = ["a handwritten seven", "手写的数字三"]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images(pipeline, *args, **kwargs):
    kwargs = {"num_inference_steps": 3, "output_type": "pt", "generator": generators(1, 2)} | kwargs
    return pipeline(*args, **kwargs).images
