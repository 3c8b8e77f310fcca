"""How far the judge of scenes can be trusted: on clean, blurred and noisy renders, beside a trained CNN."""

from dataclasses import dataclass

import torch

from ..data.scene_splits import EVERYTHING, Scenes
from ..data.scenes import Scene
from .scene_cnn import SceneCNN, disturb
from .scenes import read_scene

DISTURBANCES = (  # blur in pixels, noise
    (0.0, 0.0),
    (0.4, 0.0),
    (0.6, 0.0),
    (0.8, 0.0),
    (1.0, 0.0),
    (0.0, 0.05),
    (0.0, 0.1),
    (0.0, 0.2),
    (0.6, 0.1),
)


@dataclass(frozen=True)
class JudgeAccuracy:
    """Shares of held-out renders: read exactly by the judge, by the CNN, and read alike by both."""

    resolution: int
    blur: float
    noise: float
    judge: float
    cnn: float
    agreement: float
    count: int


def measure_judge(cnn: SceneCNN, resolution: int, count: int = 1000, seed: int = 3_000_000) -> list[JudgeAccuracy]:
    """One row per disturbance, on `count` renders that no reader has seen."""
    scenes = Scenes(resolution, EVERYTHING, seed=seed)
    truth = [scenes.scene(i) for i in range(count)]
    clean = torch.stack([scenes.image(i) for i in range(count)])
    rows = []
    for blur, noise in DISTURBANCES:
        images = disturb(clean, blur, noise)
        judged, seen = [read_scene(image, scenes.grid) for image in images], cnn.read(images, scenes.grid)
        rows.append(
            JudgeAccuracy(
                resolution,
                blur,
                noise,
                judge=share_alike(judged, truth),
                cnn=share_alike(seen, truth),
                agreement=share_alike(judged, seen),
                count=count,
            )
        )
    return rows


def share_alike(some: list[Scene], others: list[Scene]) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)
