"""Scenes and their captions as data sets: what is trained on, and what a model that learned it is asked.

A split is a rule, not a list: scene and caption number `i` are functions of the seed and `i`.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..files import holds_something
from .captions import LANGUAGES, Description, describe
from .scenes import GRIDS, Scene, draw_scene, render, to_pixels

Pairs = frozenset[tuple[str, str]]  # of colour and shape
NONE: Pairs = frozenset()
HELD_OUT_PAIRS: Pairs = frozenset({("red", "cross"), ("green", "square"), ("blue", "triangle"), ("yellow", "ring")})
FRENCH_HELD_OUT: Pairs = frozenset({("magenta", "cross"), ("cyan", "square"), ("red", "triangle"), ("blue", "ring")})
CAPTIONS_FOR_TOKENIZER = 4000


@dataclass(frozen=True)
class Split:
    """Which scenes, and what is said of them.

    Args:
        num_objects: numbers of objects, equally likely.
        lengths: of captions, see `captions.LENGTHS`, equally likely; one that is listed twice is twice as likely.
        languages: equally likely.
        in_reading_order: objects are mentioned from the upper left to the lower right, or in any other order.
        place: of the clauses that matter among others, see `captions.PLACES`; any if None.
        required_pairs: one object has one of these colours and shapes; NONE asks nothing.
        forbidden_pairs: no other object has one of these.
        not_in_french: scenes with one of these are not described in French.
    """

    num_objects: tuple[int, ...] = (1, 2, 3)
    lengths: tuple[str, ...] = ("short", "medium", "medium")
    languages: tuple[str, ...] = LANGUAGES
    in_reading_order: bool = True
    place: str | None = None
    required_pairs: Pairs = NONE
    forbidden_pairs: Pairs = HELD_OUT_PAIRS
    not_in_french: Pairs = FRENCH_HELD_OUT


TRAINING = Split()
SPLITS = {
    "same": TRAINING,
    "pairs": Split(required_pairs=HELD_OUT_PAIRS),
    "objects": Split(num_objects=(4, 5), lengths=("medium",)),  # 4 alone at 16 pixels, see `Scenes`
    "order": Split(num_objects=(2, 3), in_reading_order=False),
    "language": Split(languages=("French",), required_pairs=FRENCH_HELD_OUT, not_in_french=NONE),
    "long": Split(lengths=("long",)),
    "very long": Split(lengths=("very long",)),
}
EVERYTHING = Split(num_objects=(1, 2, 3, 4, 5), forbidden_pairs=NONE, not_in_french=NONE)


@dataclass(frozen=True)
class Scenes:
    """An endless data set for training, of nominal length `size`; nothing is stored, everything is drawn on demand.

    Args:
        resolution: one of `scenes.GRIDS`, 16, 32 or 64.
        split: which scenes and captions; numbers of objects for which the grid has no cells are left out.
        size: of an epoch.
        seed: other scenes for another seed.

    Raises:
        ValueError: the resolution is not one of those, or the grid has too few cells.
    """

    resolution: int
    split: Split = EVERYTHING
    size: int = 100_000
    seed: int = 0

    def __post_init__(self):
        if self.resolution not in GRIDS:
            raise ValueError(f"`resolution` must be one of {', '.join(map(str, GRIDS))}, got {self.resolution}.")
        if self.split.languages == ("French",) and self.split.not_in_french - self.split.forbidden_pairs:
            raise ValueError(
                "`languages` must hold another one beside French if some pairs are `not_in_french`, got French alone; "
                "set `not_in_french=NONE`."
            )
        if not any(1 <= n <= self.grid**2 for n in self.split.num_objects) or min(self.split.num_objects) < 1:
            raise ValueError(
                f"`num_objects` must hold a number between 1 and {self.grid**2}, the number of cells at "
                f"{self.resolution} pixels, and none below, got {self.split.num_objects}."
            )

    @property
    def grid(self) -> int:
        return GRIDS[self.resolution]

    @property
    def num_objects(self) -> tuple[int, ...]:
        """Those of the split for which there are cells."""
        return tuple(n for n in self.split.num_objects if n <= self.grid**2)

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        rng = self._rng("scene", index)
        split = self.split
        scene = draw_scene(
            rng, self.grid, rng.choice(self.num_objects), lambda *pair: pair not in split.forbidden_pairs
        )
        if not split.required_pairs:
            return scene
        colour, shape = rng.choice(sorted(split.required_pairs))
        place = rng.randrange(len(scene.objects))
        changed = dataclasses.replace(scene.objects[place], colour=colour, shape=shape)
        return Scene((*scene.objects[:place], changed, *scene.objects[place + 1 :]), scene.grid)

    def image(self, index: int) -> torch.Tensor:
        """`[3, resolution, resolution]` in [-1, 1]."""
        return render(self.scene(index), self.resolution, self._rng("picture", index))

    def description(self, index: int, rng: random.Random | None = None) -> Description:
        """A caption and what it says; always the same one unless `rng` is given."""
        rng = rng or self._rng("caption", index)
        scene, split = self.scene(index), self.split
        not_in_french = any((x.colour, x.shape) in split.not_in_french for x in scene.objects)
        languages = [name for name in split.languages if not (not_in_french and name == "French")]
        return describe(
            scene, rng, rng.choice(languages), rng.choice(split.lengths), split.in_reading_order, split.place
        )

    def caption(self, index: int, rng: random.Random) -> str:
        return self.description(index, rng).text

    def _rng(self, what: str, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{what}/{index}")


def captions_for_tokenizer() -> Iterator[str]:
    """Captions of training, and all that longer ones are made of: what a tokenizer is fitted on."""
    scenes = Scenes(32, dataclasses.replace(TRAINING, lengths=("short", "medium", "long")), seed=1)
    return (scenes.description(i).text for i in range(CAPTIONS_FOR_TOKENIZER))


def export_image_folder(scenes: Scenes, folder: str | Path, count: int) -> None:
    """Write `count` pictures as PNG and their captions in `metadata.jsonl`, for `load_dataset("imagefolder")`.

    Raises:
        ValueError: `count` is below 1.
        FileExistsError: the folder is there and not empty.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    folder = Path(folder)
    if holds_something(folder):
        raise FileExistsError(f"`folder` must be new or empty, but {folder} holds something; choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name, description, scene = f"{i:06d}.png", scenes.description(i), scenes.scene(i)
        Image.fromarray(to_pixels(scenes.image(i))).save(folder / name)
        objects = [dataclasses.asdict(x) for x in scene.objects]
        rows.append(
            {"file_name": name, "text": description.text, "language": description.language, "objects": objects}
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
