import sys

import pytest
from pictures import image_bytes

from diffusers_crosswkv.data.config import DataConfig
from diffusers_crosswkv.data.loading import open_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    datasets.disable_progress_bars()


def open_(data, **options):
    config = DataConfig(str(data), **{"resolution": 32, "cache_dir": f"{data}.cache", **options})
    return open_data(config, 4, progress=False)


def wordings(source):
    """Captions by name, over many steps."""
    found = {}
    for step in range(60):
        for slot in range(4):
            example = source.example(step, slot)
            found.setdefault(example.name.rpartition("[")[2].rstrip("]"), set()).add(example.caption)
    return found


def saved(path, columns, **features):
    dataset = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    dataset.save_to_disk(path)
    return path


def images(count):
    return [{"bytes": image_bytes(30 + i, 50, i), "path": None} for i in range(count)]


def test_a_saved_data_set(tmp_path):
    columns = {"image": images(3), "text": ["one", "", ["no"][0]], "id": [7, 8, 9]}
    source = open_(saved(tmp_path / "set", columns, image=datasets.Image()))
    assert wordings(source) == {"0": {"one"}, "2": {"no"}}
    assert [reason for _, reason in source.findings()] == ["has an empty caption"]
    assert source.example(0, 0).pixels().shape == (3, 32, 32)


def test_several_wordings_in_a_list(tmp_path):
    columns = {"image": images(2), "captions": [["a", " ", "b"], []]}
    source = open_(saved(tmp_path / "set", columns, image=datasets.Image()))
    assert wordings(source) == {"0": {"a", "b"}}


def test_identity_is_of_the_bytes(tmp_path):
    columns = {"image": images(2) + images(1), "text": ["x", "y", "z"]}
    source = open_(saved(tmp_path / "set", columns, image=datasets.Image()))
    found = {x.name: x.identity for x in (source.example(step, slot) for step in range(3) for slot in range(4))}
    assert len(found) == 3 and len(set(found.values())) == 2


def test_a_saved_dict_of_splits(tmp_path):
    dataset = datasets.Dataset.from_dict({"image": images(1), "text": ["x"]}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "set")
    assert open_(tmp_path / "set", split="test").examples_per_epoch == 1
    with pytest.raises(ValueError, match="`split` must be one of train, test, got 'validation'"):
        open_(tmp_path / "set", split="validation")


def test_columns_are_listed_where_none_fits(tmp_path):
    path = saved(tmp_path / "set", {"picture": images(1), "words": ["x"]}, picture=datasets.Image())
    with pytest.raises(ValueError, match=r"must have a column of captions.*its columns are picture, words"):
        open_(path)
    assert open_(path, caption_column="words").example(0, 0).caption == "x"
    with pytest.raises(ValueError, match=r"`image_column` must be a column of .*, got 'img'; its columns are picture"):
        open_(path, caption_column="words", image_column="img")
    numbers = saved(tmp_path / "numbers", {"image": images(1), "text": [5]}, image=datasets.Image())
    with pytest.raises(ValueError, match=r"A caption must be a string or a list of strings, but .* holds 5"):
        open_(numbers)


def test_parquet_as_img2dataset_writes_it(tmp_path):
    """Bytes in a column named after their format, rows that could not be fetched, the caption twice."""
    (tmp_path / "laion").mkdir()
    columns = {
        "key": ["000000000", "000000001", "000000002"],
        "jpg": [image_bytes(40, 60, 0, "JPEG"), None, image_bytes(40, 60, 2, "JPEG")],
        "txt": ["ein Fuchs", "gone", "狐狸"],
        "url": ["https://example.org/x.jpg"] * 3,
        "caption": ["ein Fuchs", "gone", "狐狸"],
        "status": ["success", "failed_to_download", "success"],
        "exif": [None, None, "{}"],
    }
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "laion/00000.parquet")
    source = open_(tmp_path / "laion")
    assert wordings(source) == {"0": {"ein Fuchs"}, "2": {"狐狸"}}
    assert [reason for _, reason in source.findings()] == ["cannot be read: the row has no image"]
    assert source.example(0, 0).pixels().shape == (3, 32, 32)
    assert open_(tmp_path / "laion/*.parquet").examples_per_epoch == 2
    assert open_(tmp_path / "laion/00000.parquet", streaming=True).example(0, 0).caption in ("ein Fuchs", "狐狸")


def test_cifar10_as_on_the_hub(tmp_path):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    columns = {"img": images(3), "label": [0, 3, 9]}
    path = saved(tmp_path / "set", columns, img=datasets.Image(), label=datasets.ClassLabel(names=names))
    assert wordings(open_(path, captions="cifar10-class")) == {"0": {"airplane"}, "1": {"cat"}, "2": {"truck"}}
    assert {"a cat", "a photo of a cat", "a picture of a cat"} <= wordings(open_(path, captions="cifar10"))["1"]
    assert wordings(open_(path, captions="none")) == {"0": {""}, "1": {""}, "2": {""}}
    bare = saved(tmp_path / "bare", {"img": images(3), "label": [0, 3, 10]}, img=datasets.Image())
    source = open_(bare, captions="cifar10-class")
    assert wordings(source) == {"0": {"airplane"}, "1": {"cat"}}
    assert "names 10 classes" in source.findings()[0][1]


def test_imagenet_as_on_the_hub(tmp_path):
    label = datasets.ClassLabel(names=["tench, Tinca tinca", "goldfish, Carassius auratus", "jay"])
    path = saved(tmp_path / "set", {"image": images(2), "label": [1, 2]}, image=datasets.Image(), label=label)
    assert wordings(open_(path, captions="imagenet-class")) == {"0": {"goldfish"}, "1": {"jay"}}
    found = wordings(open_(path, captions="imagenet"))
    assert {"a goldfish", "a photo of a Carassius auratus"} <= found["0"]


def test_celeba_as_on_the_hub(tmp_path):
    from diffusers_crosswkv.data.celeba import ATTRIBUTES

    faces = [{"Male", "Smiling"}, {"Young", "Wearing_Hat", "No_Beard", "Black_Hair"}]
    columns = {"image": images(2), **{name: [name in face for face in faces] for name in ATTRIBUTES}}
    found = wordings(open_(saved(tmp_path / "set", columns, image=datasets.Image()), captions="celeba"))
    assert {"smiling man with beard", "a photo of a smiling man with a beard"} <= found["0"]
    assert {"young woman with hat and black hair", "a young woman with black hair, wearing a hat"} <= found["1"]


def test_a_data_set_that_cannot_be_reached(tmp_path):
    with pytest.raises(ValueError, match="or a data set that can be read, but 'nobody/nothing'"):
        open_("nobody/nothing", cache_dir=tmp_path)


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"must have the library `datasets`.*diffusers-crosswkv\[training\]"):
        open_("nobody/nothing", cache_dir=tmp_path)
