"""What a user says of data, checked before any work starts."""

import os
from dataclasses import dataclass
from pathlib import Path

from .built_in import is_built_in
from .caption_builders import CaptionBuilders
from .geometry import CROPS, INTERPOLATIONS

HOLDOUT = "`holdout_examples` (`--validation_examples`)"  # what it is called here, and on command lines


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and how images are fitted.

    Args:
        data: `digits`, `scenes:32` (16, 32, 64); a folder of images, of WebDataset shards or of parquet files; a data
            set saved by `datasets`; `*.tar` or `*.parquet` (wildcards and `{00..31}`; also `https://` and `hf://`); or
            the id of a data set on the Hub. What is there as a file or folder is never looked for on the Hub.
        config_name, split, revision: of a data set of the Hub; `split` also of a saved one.
        image_column, caption_column: guessed if None. With builders for classes, the latter is the column of labels.
        captions: a column or text file as it is (`text`; each line of a file is one wording, of which one is drawn),
            nothing at all (`none`: unconditional), or made by a builder: `class` and `class-text` (a class's name,
            alone or in several wordings), `cifar10`, `cifar10-class`, `imagenet`, `imagenet-class`, `celeba`.
        resolution: pixels of a side; the built-in data sets' own, else 512, if None.
        crop: `center` or `random`; what is cut off is the longer side's surplus. With random crops hardly two examples
            are alike, and a cache of latents is of no use.
        flip: left and right are exchanged in half of the examples.
        interpolation: one of `INTERPOLATIONS`, all but `nearest` antialiased.
        buckets: sizes near `resolution` squared for other aspect ratios, instead of squares.
        max_aspect_ratio: of the widest and tallest bucket, >= 1.
        streaming: read in order, from shards in a new order every epoch, instead of at random.
        stream_block: images that a stream reads ahead and mixes, >= 1.
        holdout_examples: images kept for validation and never trained on, >= 0. The same ones for one seed, also if
            images are added.
        max_examples: train on so many at most, chosen likewise; not for streams.
        cache_dir: where sizes and indices are kept; `diffusers_crosswkv` in the user's cache folder if None.

    Raises:
        ValueError: a value is out of its range.
    """

    data: str
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    captions: str = "text"
    resolution: int | None = None
    crop: str = "center"
    flip: bool = False
    interpolation: str = "lanczos"
    buckets: bool = False
    max_aspect_ratio: float = 2.0
    streaming: bool = False
    stream_block: int = 1024
    holdout_examples: int = 0
    max_examples: int | None = None
    cache_dir: str | os.PathLike | None = None

    def __post_init__(self):
        self._require("data", bool(str(self.data).strip()), "the name of a data set")
        self._require("crop", self.crop in CROPS, "one of " + ", ".join(CROPS))
        self._require("interpolation", self.interpolation in INTERPOLATIONS, "one of " + ", ".join(INTERPOLATIONS))
        self._require("resolution", self.resolution is None or self.resolution >= 1, "at least 1")
        self._require("max_aspect_ratio", 1 <= self.max_aspect_ratio < float("inf"), "at least 1")
        self._require("stream_block", self.stream_block >= 1, "at least 1")
        self._require("holdout_examples", self.holdout_examples >= 0, "at least 0")
        self._require("max_examples", self.max_examples is None or self.max_examples >= 1, "at least 1")
        if self.streaming:
            self._require("max_examples", self.max_examples is None, "None with `streaming`")
            self._require("data", not is_built_in(self.data), "files or a data set of the Hub with `streaming`")
        if is_built_in(self.data):
            self._require("captions", self.captions in ("text", "none"), "`text` or `none` for built-in data")
            for name in ("config_name", "revision", "image_column", "caption_column"):
                self._require(name, getattr(self, name) is None, "left out for built-in data")
        self.caption_builders()

    def caption_builders(self) -> CaptionBuilders:
        folder = os.path.dirname(self.data) if "*" in self.data or Path(self.data).is_file() else self.data
        return CaptionBuilders(self.captions, self.caption_column, folder)

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            raise ValueError(f"`{name}` must be {requirement}, got {getattr(self, name)!r}.")
