import tarfile

import pytest
from pictures import image_bytes
from shards import laion_sample, write_shards, write_tar

from diffusers_crosswkv.data import tar_shards
from diffusers_crosswkv.data.caption_builders import CaptionBuilders
from diffusers_crosswkv.data.config import DataConfig
from diffusers_crosswkv.data.loading import open_data
from diffusers_crosswkv.data.tar_shards import TarShards


def open_shards(*paths, **options):
    return TarShards(list(paths), CaptionBuilders(**options), paths[0].parent / "cache", progress=False)


def captions_of(records):
    return {records.name(i): records.record(i).caption.texts for i in range(len(records))}


def test_every_image_is_read_from_its_place(tmp_path):
    samples = {f"dir/{i}.x": {"png": image_bytes(20 + i, 30, i), "txt": f"ein Bild {i}"} for i in range(3)}
    path = write_tar(tmp_path / "a.tar", {key.split(".")[0]: value for key, value in samples.items()})
    records = open_shards(path)
    assert captions_of(records) == {f"a.tar/dir/{i}": (f"ein Bild {i}",) for i in range(3)}
    for i in range(3):
        assert records.record(i).open().read() == image_bytes(20 + i, 30, i)


def test_captions_in_json_text_and_classes(tmp_path):
    samples = {
        "1": {"jpg": image_bytes(form="JPEG"), "json": {"caption": "from json", "url": "https://example.org"}},
        "2": {"seg.png": image_bytes(), "jpg": image_bytes(form="JPEG"), "json": {"caption": "two images"}},
        "3": {"jpg": image_bytes(form="JPEG"), "json": {"caption": None}},
        "4": {"json": {"caption": "no image"}},
        "5": {"jpg": image_bytes(form="JPEG"), "json": "{damaged"},
    }
    records = open_shards(write_tar(tmp_path / "a.tar", samples))
    assert captions_of(records) == {"a.tar/1": ("from json",), "a.tar/2": ("two images",)}
    assert records.findings == [
        ("a.tar/3", "has an empty caption"),
        ("a.tar/4", "has no image"),
        ("a.tar/5", "has an empty caption"),
    ]
    assert records.record(1).open().read() == image_bytes(form="JPEG")
    classes = write_tar(tmp_path / "b.tar", {"1": {"png": image_bytes(), "cls": "3"}})
    assert captions_of(open_shards(classes, name="cifar10-class")) == {"b.tar/1": ("cat",)}


def test_the_index_is_kept_until_the_shard_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"1": laion_sample(1)})
    read = []
    original = tar_shards.read_index
    monkeypatch.setattr(tar_shards, "read_index", lambda path: read.append(path) or original(path))
    first, second = open_shards(path), open_shards(path)
    assert len(read) == 1
    assert first.key(0) == second.key(0)
    write_tar(path, {"1": laion_sample(1), "2": laion_sample(2)})
    assert len(open_shards(path)) == 2
    assert open_shards(path).key(0) != first.key(0)


def test_compressed_and_damaged_shards(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"must be an uncompressed tar file, but .*a\.tar cannot be read"):
        open_shards(path)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ValueError, match="must be an uncompressed tar file"):
        open_shards(path)


def test_folders_patterns_and_braces_name_the_same_shards(tmp_path):
    folder = write_shards(tmp_path / "shards", [2, 3, 1])
    (folder / "00000_stats.json").write_text("{}")  # img2dataset leaves these beside its shards
    for data in (folder, folder / "*.tar", folder / "0000{0..2}.tar"):
        config = DataConfig(str(data), resolution=32, cache_dir=tmp_path / "cache")
        source = open_data(config, 2, progress=False)
        assert {source.example(i, j).caption for i in range(3) for j in range(2)} == {f"caption {i}" for i in range(6)}
    one = DataConfig(str(folder / "00001.tar"), resolution=32, cache_dir=tmp_path / "cache")
    assert open_data(one, 1, progress=False).examples_per_epoch == 3
    mixed = DataConfig(str(folder / "*"), resolution=32)
    with pytest.raises(ValueError, match="must name files that all end in"):
        open_data(mixed, 1)
