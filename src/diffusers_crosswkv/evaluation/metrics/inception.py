"""The Inception v3 of 2015 that FID, sFID, IS, KID, precision and recall are defined by.

It is not the Inception v3 of torchvision or timm: its pools differ, and it has 1,008 classes. Names of layers are
those of torch-fidelity's conversion of TensorFlow's graph, whose weights are read here. torch-fidelity itself is not
imported because it imports torchvision, of which the package index has builds for one build of torch alone; beside
any other build (a CPU one, say), that torchvision keeps transformers and Diffusers from being imported as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 299
POOL_SIZE = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_SIZE = SPATIAL_CHANNELS * 17 * 17


class Features(NamedTuple):
    """Of N images: `pool` `[N, 2048]` (ADM's `pool_3:0`), `spatial` `[N, 2023]` (`mixed_6/conv:0`), float32."""

    pool: torch.Tensor
    spatial: torch.Tensor


def tf1_resize(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """`[N, C, H, W]` float to `[N, C, side, side]` as TensorFlow 1's `resize_bilinear` does it inside of the graph.

    Pixel i of the result is at i * H / side of the image, with no half pixel added and no antialiasing.
    """
    rows, columns = (source_places(size, side, images.device) for size in images.shape[-2:])
    low, high, weight = columns
    upper, lower = images[:, :, rows[0]], images[:, :, rows[1]]
    top = upper[..., low] + (upper[..., high] - upper[..., low]) * weight
    bottom = lower[..., low] + (lower[..., high] - lower[..., low]) * weight
    return top + (bottom - top) * rows[2][:, None]


def source_places(size: int, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each of `side` pixels: the two of `size` that it lies between, and the weight of the second."""
    place = torch.arange(side, device=device, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    low = place.long()
    return low, (low + 1).clamp(max=size - 1), place - low


class Convolution(nn.Module):
    """Without a bias, with batch normalisation, ReLU; as large as its input unless strided."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True):
        super().__init__()
        padding = ((kernel[0] - 1) // 2 * padded, (kernel[1] - 1) // 2 * padded)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Layer(NamedTuple):
    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Fork(NamedTuple):
    """Two layers that read the same."""

    layers: tuple[Layer, Layer]


def average_pool(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)  # TensorFlow does not count the padding


def max_pool(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halve(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=2)


POOLS = {"average": average_pool, "max": max_pool, "halve": halve}
Path = Sequence[Layer | Fork | str]


class Mixed(nn.Module):
    """Paths that read the same, side by side; a string in a path is a pool."""

    def __init__(self, inputs: int, paths: Sequence[Path]):
        super().__init__()
        self.paths = paths
        self.outputs = 0
        for path in paths:
            channels = inputs
            for step in path:
                if isinstance(step, str):
                    continue
                layers = step.layers if isinstance(step, Fork) else (step,)
                for name, outputs, kernel, stride in layers:
                    self.add_module(name, Convolution(channels, outputs, kernel, stride, padded=stride == 1))
                channels = sum(layer.outputs for layer in layers)
            self.outputs += channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._follow(path, x) for path in self.paths], 1)

    def _follow(self, path: Path, x: torch.Tensor) -> torch.Tensor:
        for step in path:
            if isinstance(step, str):
                x = POOLS[step](x)
            elif isinstance(step, Fork):
                x = torch.cat([self.get_submodule(layer.name)(x) for layer in step.layers], 1)
            else:
                x = self.get_submodule(step.name)(x)
        return x


def mixed_5(pooled: int) -> list[Path]:
    return [
        [Layer("branch1x1", 64)],
        [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))],
        [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))],
        ["average", Layer("branch_pool", pooled)],
    ]


def mixed_6a() -> list[Path]:
    return [
        [Layer("branch3x3", 384, (3, 3), 2)],
        [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)],
        ["halve"],
    ]


def mixed_6(width: int) -> list[Path]:
    flat, tall = (1, 7), (7, 1)
    return [
        [Layer("branch1x1", 192)],
        [Layer("branch7x7_1", width), Layer("branch7x7_2", width, flat), Layer("branch7x7_3", 192, tall)],
        [
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, tall),
            Layer("branch7x7dbl_3", width, flat),
            Layer("branch7x7dbl_4", width, tall),
            Layer("branch7x7dbl_5", 192, flat),
        ],
        ["average", Layer("branch_pool", 192)],
    ]


def mixed_7a() -> list[Path]:
    return [
        [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)],
        [
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, (1, 7)),
            Layer("branch7x7x3_3", 192, (7, 1)),
            Layer("branch7x7x3_4", 192, (3, 3), 2),
        ],
        ["halve"],
    ]


def mixed_7(pool: str) -> list[Path]:
    """`pool`: the last block's is a maximum in this graph, and an average in every other Inception v3."""

    def fork(name: str) -> Fork:
        return Fork((Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))))

    return [
        [Layer("branch1x1", 320)],
        [Layer("branch3x3_1", 384), fork("branch3x3_2")],
        [Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")],
        [pool, Layer("branch_pool", 192)],
    ]


MIXED = {
    "Mixed_5b": mixed_5(32),
    "Mixed_5c": mixed_5(64),
    "Mixed_5d": mixed_5(64),
    "Mixed_6a": mixed_6a(),
    "Mixed_6b": mixed_6(128),
    "Mixed_6c": mixed_6(160),
    "Mixed_6d": mixed_6(160),
    "Mixed_6e": mixed_6(192),
    "Mixed_7a": mixed_7a(),
    "Mixed_7b": mixed_7("average"),
    "Mixed_7c": mixed_7("max"),
}
SPATIAL_BLOCK = "Mixed_6d"  # TensorFlow counts the blocks of the graph from 0: `mixed_6`


class InceptionV3(nn.Module):
    """Pixels to [`Features`], with TensorFlow's resize and scaling inside; for evaluation, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3 = Convolution(3, 32, three, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, three, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, three)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, three, padded=False)
        channels = 192
        for name, paths in MIXED.items():
            block = Mixed(channels, paths)
            self.add_module(name, block)
            channels = block.outputs
        self.fc = nn.Linear(POOL_SIZE, CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> Features:
        """`images`: `[N, 3, H, W]`, uint8, any size."""
        x = (tf1_resize(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = halve(x)
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in MIXED:
            if name == SPATIAL_BLOCK:
                spatial = self.get_submodule(f"{name}.branch1x1")(x)[:, :SPATIAL_CHANNELS]
            x = self.get_submodule(name)(x)
        # channels last, as TensorFlow has them, then flat: statistics of others (`mu_s`, `sigma_s`) are in that order
        return Features(x.mean((2, 3)), spatial.permute(0, 2, 3, 1).flatten(1))

    def logits(self, pool: torch.Tensor) -> torch.Tensor:
        """`[N, 1008]` of `pool`, without the bias, as ADM and torch-fidelity take them for the Inception score."""
        return pool @ self.fc.weight.T
