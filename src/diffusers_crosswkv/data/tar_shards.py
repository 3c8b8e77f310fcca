"""WebDataset shards on local disks, read in any order after one look at their headers."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tqdm.auto import tqdm

from ..files import write_json
from .caption_builders import CaptionBuilders
from .image_folder import IMAGE_SUFFIXES
from .records import Finding, MissingCaption, Record, Wordings, digest, file_identity

Member = tuple[int, int]  # offset and length of the content
TEXT_SUFFIXES = ("txt", "caption", "text", "cls")


@dataclass(frozen=True)
class Sample:
    """One image of a shard, and all that was said of it."""

    shard: int
    key: str
    image: Member | None
    row: dict[str, Any]


class TarShards:
    """Samples of WebDataset shards: files of one name up to the first dot, an image among them.

    The columns that builders of captions see are the other members (`txt`, `cls`, ...) and the fields of `json`, as
    img2dataset writes them. Headers and texts are read once and kept in a file of `cache_dir`.

    Raises:
        ValueError: a shard is no uncompressed tar file, or has no captions of the kind that is asked for.
    """

    def __init__(self, paths: Sequence[Path], builders: CaptionBuilders, cache_dir: Path, progress: bool):
        self._paths = list(paths)
        self._stamps = [file_identity(path) for path in paths]
        samples = [
            sample
            for number, path in enumerate(tqdm(self._paths, "Reading shards", unit="shard", disable=not progress))
            for sample in self._index(number, path, cache_dir)
        ]
        names = dict.fromkeys(name for sample in samples for name in sample.row)
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        captions = builders.for_columns(list(names), {}, where)
        self.findings: list[Finding] = []
        self._samples: list[tuple[Sample, tuple[str, ...]]] = []
        for sample in samples:
            try:
                texts = captions(sample.row)
                if sample.image is None:
                    raise MissingCaption("has no image")
                self._samples.append((sample, texts))
            except MissingCaption as error:
                self.findings.append((self._sample_name(sample), str(error)))

    def _index(self, number: int, path: Path, cache_dir: Path) -> list[Sample]:
        place = cache_dir / "shards" / f"{digest(self._stamps[number])}.json"
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = read_index(path)
            write_json(place, found)
        return [Sample(number, key, tuple(image) if image else None, row) for key, image, row in found]

    def _sample_name(self, sample: Sample) -> str:
        return f"{self._paths[sample.shard].name}/{sample.key}"

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        return self._sample_name(self._samples[index][0])

    def key(self, index: int) -> str:
        sample, _ = self._samples[index]
        return f"{self._stamps[sample.shard]}|{sample.key}"

    def record(self, index: int) -> Record:
        sample, texts = self._samples[index]
        assert sample.image is not None
        read = partial(read_member, self._paths[sample.shard], *sample.image)
        return Record(self.name(index), self.key(index), Wordings(texts), read)


def read_member(path: Path, offset: int, length: int) -> BinaryIO:
    with path.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(length))


def read_index(path: Path) -> list[tuple[str, Member | None, dict[str, Any]]]:
    """Key, place of the image and texts of each sample, in the order of the shard.

    Raises:
        ValueError: this is no uncompressed tar file.
    """
    samples: dict[str, tuple[list[Member], dict[str, Any]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not info.isfile() or not stem:
                    continue
                images, row = samples.setdefault(f"{folder}/{stem}".lstrip("/"), ([], {}))
                if f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                    place = len(images) if "." in suffix else 0  # "jpg" before "mask.png"
                    images.insert(place, (info.offset_data, info.size))
                elif suffix == "json" or suffix in TEXT_SUFFIXES:
                    row.update(read_text(tar, info, suffix))
    except tarfile.TarError as error:
        raise ValueError(
            f"A shard must be an uncompressed tar file, but {path} cannot be read: {error}; "
            "unpack it, or leave it out."
        ) from error
    return [(key, images[0] if images else None, row) for key, (images, row) in samples.items()]


def read_text(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> dict[str, Any]:
    """The fields of a JSON object, or one column named after the suffix; nothing if the member is damaged."""
    file = tar.extractfile(info)
    assert file is not None
    text = file.read().decode("utf-8", errors="replace")
    if suffix != "json":
        return {suffix: text}
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {"json": value}
