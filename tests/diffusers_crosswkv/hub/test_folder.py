"""Only complete and safe pipelines are published."""

import json
import zipfile

import pytest

from diffusers_crosswkv.hub import read_saved_pipeline


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_files_are_those_of_the_pipeline(folder):
    (folder / "optimizer").mkdir()
    (folder / "optimizer/moments.safetensors").write_bytes(b"of a training run")
    (folder / "unet/__pycache__").mkdir()
    (folder / "unet/__pycache__/diffusers_crosswkv.pyc").write_bytes(b"compiled")
    files = {file.as_posix() for file in read_saved_pipeline(folder).files}
    assert files >= {"model_index.json", "pipeline.py", "unet/config.json", "unet/diffusers_crosswkv.py"}
    assert not any(file.startswith("optimizer") or "pycache" in file for file in files)


def test_shards_are_counted_once(make_pipeline, folder):
    whole = read_saved_pipeline(folder).parameters
    make_pipeline().unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert read_saved_pipeline(folder).parameters == whole
    next((folder / "unet").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="must hold diffusion_pytorch_model-00002-of-"):
        read_saved_pipeline(folder)


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def name_component(name):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, name: ["diffusers", "UNet2DConditionModel"]}))

    return change


def truncate(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def zip_weights(folder):
    with zipfile.ZipFile(folder / "unet/weights.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"")


def take_folder_away(folder):
    for path in (folder / "scheduler").iterdir():
        path.unlink()
    (folder / "scheduler").rmdir()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (remove("model_index.json"), FileNotFoundError, "must hold a model_index.json"),
        (write("model_index.json", b"{"), ValueError, "model_index.json is damaged"),
        (write("model_index.json", json.dumps({"unet": []}).encode()), ValueError, "must name its pipeline's class"),
        (name_component("../unet"), ValueError, r"must name components inside its folder, got '../unet'"),
        (take_folder_away, FileNotFoundError, "must hold a folder 'scheduler'"),
        (remove("unet/diffusion_pytorch_model.safetensors"), FileNotFoundError, "must hold weights as"),
        (truncate, ValueError, "is no complete safetensors file"),
        (remove("unet/diffusers_crosswkv.py"), FileNotFoundError, "must hold unet/diffusers_crosswkv.py, the code"),
        (remove("pipeline.py"), FileNotFoundError, "must hold pipeline.py, the code"),
        (write("unet/diffusion_pytorch_model.bin", b""), ValueError, "must not be published: loading such a file can"),
        (write("unet/model.safetensors.old", b"\x80\x04K\x01."), ValueError, "must not be published"),
        (zip_weights, ValueError, "must not be published"),
    ],
)
def test_what_is_not_published(folder, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        read_saved_pipeline(folder)


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="There must be a folder at"):
        read_saved_pipeline(tmp_path / "gone")
