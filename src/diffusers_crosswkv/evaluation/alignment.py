"""Whether a picture of a scene shows what its caption says, fact by fact."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..data.captions import Description, Mention
from ..data.scenes import Scene, SceneObject

RESAMPLES = 1000


@dataclass(frozen=True)
class Verdict:
    """What is right in one picture; None where the caption asks nothing.

    Args:
        colour, shape, size, cell: share of the mentioned objects that have what was said of them.
        binding: share of the mentioned objects of which all is right at once.
        count: as many objects as the caption names.
        relation: the first two objects stand as the caption says.
        everything: all of it.
        bound_by_row: per object whose cell was named, its row and whether all is right.
    """

    colour: float
    shape: float
    size: float | None
    cell: float | None
    binding: float
    count: float
    relation: float | None
    everything: float
    bound_by_row: tuple[tuple[int, bool], ...]


METRICS = ("colour", "shape", "size", "cell", "binding", "count", "relation", "everything")


def judge(description: Description, scene: Scene) -> Verdict:
    """Hold the scene that was read in a picture to its caption.

    Mentions and objects are paired so that most is right; an object serves one mention only.
    """
    mentions, pairs = description.mentions, pair(description, scene.objects)
    bound = [seen is not None and fits(mention, seen) == 4 for mention, seen in pairs]
    related = None
    if description.relation is not None:
        first, second = pairs[0][1], pairs[1][1]
        related = first is not None and second is not None and stands(first, description.relation, second)
    counted = len(scene.objects) == len(mentions)
    return Verdict(
        colour=share([seen is not None and mention.colour == seen.colour for mention, seen in pairs]) or 0.0,
        shape=share([seen is not None and mention.shape == seen.shape for mention, seen in pairs]) or 0.0,
        size=share([seen is not None and m.size == seen.size for m, seen in pairs if m.size is not None]),
        cell=share([seen is not None and m.cell == seen.cell for m, seen in pairs if m.cell is not None]),
        binding=share(bound) or 0.0,
        count=float(counted),
        relation=None if related is None else float(related),
        everything=float(counted and all(bound) and related is not False),
        bound_by_row=tuple((m.cell[0], right) for m, right in zip(mentions, bound, strict=True) if m.cell is not None),
    )


def pair(description: Description, objects: Sequence[SceneObject]) -> list[tuple[Mention, SceneObject | None]]:
    """Every mention with an object of its own, or None if there are too few."""
    mentions = description.mentions
    if not objects:
        return [(mention, None) for mention in mentions]
    if description.relation is not None and len(objects) > 1:
        first, second = max(permutations(objects, 2), key=lambda two: worth(description, two))
        return [(mentions[0], first), (mentions[1], second)]
    whole = 5 * len(mentions)  # one object that is right as a whole outweighs any number of single facts
    gain = np.array([[f + whole * (f == 4) for seen in objects for f in (fits(m, seen),)] for m in mentions])
    found = dict(zip(*linear_sum_assignment(gain, maximize=True), strict=True))
    return [(mention, objects[found[i]] if i in found else None) for i, mention in enumerate(mentions)]


def worth(description: Description, two: tuple[SceneObject, SceneObject]) -> int:
    right = [fits(mention, seen) for mention, seen in zip(description.mentions, two, strict=True)]
    return sum(right) + stands(two[0], description.relation or "", two[1])


def fits(mention: Mention, seen: SceneObject) -> int:
    """How many of colour, shape, size and cell agree, 0 to 4; what is not said agrees."""
    return (
        (mention.colour == seen.colour)
        + (mention.shape == seen.shape)
        + (mention.size in (None, seen.size))
        + (mention.cell in (None, seen.cell))
    )


def stands(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether `first` is left of, right of, above or below `second`."""
    (row, column), (other_row, other_column) = first.cell, second.cell
    return {
        "left": column < other_column,
        "right": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }.get(relation, False)


def share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


@dataclass(frozen=True)
class Mean:
    """A mean, its 95 % bootstrap interval, and the number of values."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0) -> Mean | None:
    """The mean over all values of all groups, or None if there are none; resamples groups, and values within them.

    Groups are the trainings with different seeds, values their pictures: both vary.
    """
    arrays = [np.asarray(values, dtype=float) for values in groups if len(values)]
    if not arrays:
        return None
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        chosen = [arrays[i] for i in rng.integers(len(arrays), size=len(arrays))]
        means.append(np.concatenate([rng.choice(x, size=len(x)) for x in chosen]).mean())
    return with_interval(np.concatenate(arrays), means)


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Mean:
    """Mean of `first` minus `second`, `[trainings, captions]` each, and its 95 % interval.

    Both sides saw the same captions, and so did every training: captions are resampled for all of them at once,
    trainings beside.

    Raises:
        ValueError: the two are not of one shape, or empty.
    """
    differences = (
        np.asarray(first, dtype=float) - np.asarray(second, dtype=float) if len(first) == len(second) else None
    )
    if differences is None or differences.ndim != 2 or differences.size == 0:
        raise ValueError("Both sides must hold the same captions for as many trainings, and at least one of each.")
    rng = np.random.default_rng(seed)
    trainings, captions = differences.shape
    means = [
        differences[rng.integers(trainings, size=trainings)][:, rng.integers(captions, size=captions)].mean()
        for _ in range(RESAMPLES)
    ]
    return with_interval(differences, means)


def with_interval(values: np.ndarray, resampled_means: list[float]) -> Mean:
    low, high = np.quantile(resampled_means, (0.025, 0.975))
    return Mean(float(values.mean()), float(low), float(high), values.size)


def shuffled(count: int, seed: int = 0) -> list[int]:
    """A permutation that leaves nothing in its place: whose caption each picture is held to, as a control."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    following = {order[i]: order[(i + 1) % count] for i in range(count)}
    return [following[i] for i in range(count)]
