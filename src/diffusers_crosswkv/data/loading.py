"""From what a user names as data to examples for training."""

from collections import Counter
from pathlib import Path
from typing import Protocol

from .buckets import Buckets, make_buckets
from .built_in import BuiltIn, is_built_in, open_built_in
from .config import HOLDOUT, DataConfig
from .dataset_rows import DatasetRows, read_rows
from .examples import Example, ExampleSource
from .geometry import Geometry
from .image_folder import ImageFolder
from .places import Place, find_place
from .record_source import RecordSource
from .records import Finding, Records, Size, digest, too_many_bad
from .size_index import default_cache_dir, read_sizes
from .stream_shards import StreamShards
from .stream_source import StreamSource
from .tar_shards import TarShards

RESOLUTION = 512


class TrainingData(ExampleSource, Protocol):
    """Examples for training, and what else is known of the data."""

    holdout: list[Example]
    """Sorted by size; from the centre, not flipped, always with the same caption."""

    remarks: list[Finding]
    """Names and peculiarities of images that are used all the same."""


def open_data(
    config: DataConfig,
    batch_size: int,
    seed: int = 0,
    channels: int = 3,
    multiple: int = 8,
    progress: bool = True,
    max_bad_images: float = 1.0,
) -> TrainingData:
    """Find the data, look at all names, captions and sizes, and arrange the order of examples.

    Args:
        batch_size: over all processes, >= 1.
        channels: of the pixels, 1 or 3.
        multiple: what sides must be a multiple of: the VAE's factor times 2 for each time the U-Net halves.
        progress: show bars where images have to be looked at.
        max_bad_images: share of images that may be broken or without a caption, in [0, 1]; of a few images, one may
            be, unless it is 0. Streams are read later.

    Raises:
        ValueError: a column, a split or an index is missing, no image is left, too many are bad, or a size does not
            fit the model.
        FileNotFoundError: there is no such file or folder.
        ImportError: `datasets` is needed and not installed.
    """
    cache_dir = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    resolution = choose_resolution(config)
    check_arguments(batch_size, resolution, channels, multiple)
    buckets = make_buckets(resolution, multiple, config.max_aspect_ratio if config.buckets else 1)
    geometry = Geometry(config.crop, config.flip, config.interpolation, channels)
    if config.streaming:
        return open_stream(config, buckets, geometry, batch_size, seed)
    records = open_records(config, cache_dir, progress)
    sizes, broken = sizes_of(records, config, cache_dir, progress)
    findings = [*records.findings, *broken]
    held, kept = divide(records, list(sizes), config, seed)
    if not kept:
        raise ValueError(nothing_left(config, len(held), findings))
    check_findings(findings, len(findings) + len(sizes), max_bad_images)
    bucket_of = {i: buckets.sizes[buckets.nearest(sizes[i])] for i in [*held, *kept]}
    holdout = [geometry.make_fixed_example(records.record(i), bucket_of[i]) for i in held]
    return RecordSource(
        records,
        kept,
        [sizes[i] for i in kept],
        buckets,
        geometry,
        batch_size,
        seed,
        sorted(holdout, key=lambda example: example.size),
        findings,
        small_images(records, kept, sizes, bucket_of),
    )


def choose_resolution(config: DataConfig) -> int:
    """What is asked for, else what a built-in data set has, else 512."""
    if config.resolution is not None:
        return config.resolution
    return open_built_in(config.data).resolution if is_built_in(config.data) else RESOLUTION


def check_arguments(batch_size: int, resolution: int, channels: int, multiple: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3, got {channels}.")
    if resolution % multiple:
        lower = resolution // multiple * multiple
        raise ValueError(
            f"`resolution` must be a multiple of {multiple} for this model, got {resolution}; "
            f"use {f'{lower} or ' if lower else ''}{lower + multiple}."
        )


def open_records(config: DataConfig, cache_dir: Path, progress: bool) -> Records:
    """Records that can be read in any order."""
    if is_built_in(config.data):
        return open_built_in(config.data, unconditional=config.captions == "none")
    builders = config.caption_builders()
    place = find_place(config.data)
    check_place(config, place)
    if place.form == "images":
        return ImageFolder(place.files[0], builders)
    if place.form == "tar" and not place.is_remote:
        return TarShards([Path(name) for name in place.files], builders, cache_dir, progress)
    return DatasetRows(read_place(config, place, streaming=False), config.data, config.image_column, builders)


def hold_out(
    shards: StreamShards, buckets: Buckets, geometry: Geometry, count: int
) -> tuple[list[Example], list[Finding]]:
    """The first images of the first shard, which is told to leave them out from now on, and what was unusable."""
    rows = shards.first_rows(count)
    usable = [(row.record, buckets.sizes[buckets.nearest(row.size)]) for row in rows if row.record is not None]
    if len(usable) < count:
        raise ValueError(
            f"{HOLDOUT} must not be above the number of images in the first shard of a stream, got {count} for "
            f"{len(usable)}; take fewer."
        )
    shards.first_row = rows[-1].end if rows else 0
    holdout = [geometry.make_fixed_example(record, size) for record, size in usable]
    return sorted(holdout, key=lambda example: example.size), [row.finding for row in rows if row.finding]


def check_place(config: DataConfig, place: Place) -> None:
    """Settings that this form of data knows nothing of are errors, not ignored."""
    unknown = []
    if place.form != "hub":
        unknown += ["config_name", "revision"] + (["split"] if place.form != "disk" else [])
    if place.form == "images" or (place.form == "tar" and not config.streaming):
        unknown.append("image_column")
    for name in unknown:
        usual = DataConfig.__dataclass_fields__[name].default
        if getattr(config, name) != usual:
            raise ValueError(
                f"`{name}` must be left out for {config.data!r}, which has none, got {getattr(config, name)!r}; "
                "name the files themselves."
            )


def read_place(config: DataConfig, place: Place, streaming: bool):
    """A data set of the library `datasets`."""
    if place.form == "disk":
        return read_rows("disk", config.split, streaming, path=place.files[0])
    if place.form == "hub":
        return read_rows(place.files[0], config.split, streaming, name=config.config_name, revision=config.revision)
    kind = "webdataset" if place.form == "tar" else place.form
    return read_rows(kind, "train", streaming, data_files=list(place.files))


def open_stream(config: DataConfig, buckets: Buckets, geometry: Geometry, batch_size: int, seed: int) -> StreamSource:
    """Shards that are read in order; the first records of the first shard are held out."""
    place = find_place(config.data)
    check_place(config, place)
    if place.form == "images":
        raise ValueError(
            f"`streaming` must be given shards or a data set of the Hub, but {config.data!r} is a folder of images, "
            "which are never read all at once; leave `streaming` out."
        )
    dataset = read_place(config, place, streaming=True)
    shards = StreamShards(dataset, config.data, config.image_column, config.caption_builders())
    holdout, findings = hold_out(shards, buckets, geometry, config.holdout_examples)
    return StreamSource(shards, buckets, geometry, batch_size, seed, config.stream_block, holdout, findings)


def sizes_of(
    records: Records, config: DataConfig, cache_dir: Path, progress: bool
) -> tuple[dict[int, Size], list[Finding]]:
    """(height, width) of all images that can be read, and why others cannot."""
    if isinstance(records, BuiltIn):
        return dict.fromkeys(range(len(records)), (records.resolution, records.resolution)), []
    source = f"{config.data} {config.config_name} {config.split}"
    return read_sizes(records, cache_dir, source, progress)


def divide(records: Records, usable: list[int], config: DataConfig, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the records held out and of those to train on.

    Chosen by the digests of seed and name, so that a few images more leave nearly all others where they were.
    """
    if not config.holdout_examples and config.max_examples is None:
        return [], usable
    drawn = sorted(usable, key=lambda i: digest(f"{seed}", records.name(i)))
    end = None if config.max_examples is None else config.holdout_examples + config.max_examples
    return drawn[: config.holdout_examples], sorted(drawn[config.holdout_examples : end])


def nothing_left(config: DataConfig, held: int, findings: list[Finding]) -> str:
    why = "; ".join(f"{name} {reason}" for name, reason in findings[:3])
    left_out = f"{len(findings)} were left out ({why}{'; ...' if len(findings) > 3 else ''})" if findings else ""
    held_out = f"{HOLDOUT} takes {held}" if held else ""
    return (
        f"`data` must hold images with captions to train on, but in {config.data!r} none is left: "
        f"{' and '.join(filter(None, (left_out, held_out))) or 'it is empty'}; mend the files, or take other settings."
    )


def check_findings(findings: list[Finding], total: int, most: float) -> None:
    """Raises ValueError if the share of bad ones of all images is above `most`."""
    if too_many_bad(len(findings), total, most):
        kinds = Counter(reason for _, reason in findings).most_common(3)
        raise ValueError(
            f"At most {most:.0%} of the images may be broken or without a caption (`max_bad_images`), but "
            f"{len(findings):,} of {total:,} are, such as {' '.join(findings[0])}. "
            f"Most frequent: {', '.join(f'{reason} ({count:,})' for reason, count in kinds)}. "
            "Mend or remove them, or allow more."
        )


def small_images(records: Records, kept: list[int], sizes: dict[int, Size], size_of: dict[int, Size]) -> list[Finding]:
    """Images that are enlarged."""
    found = []
    for i in kept:
        size, target = sizes[i], size_of[i]
        if size[0] < target[0] or size[1] < target[1]:
            found.append(
                (records.name(i), f"has {size[1]} x {size[0]} pixels and is enlarged to {target[1]} x {target[0]}")
            )
    return found
