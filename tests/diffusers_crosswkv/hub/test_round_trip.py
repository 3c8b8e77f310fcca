"""A whole round trip over HTTP against a Hub on loopback, and what goes wrong on the way."""

import numpy as np
import pytest
from hub_server import READER, WRITER, HubServer
from huggingface_hub import ModelCard
from PIL import Image
from remote import pixels, run_python

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
IN_PACKAGE = """
import diffusers_crosswkv
from diffusers import DiffusionPipeline
from diffusers_crosswkv.hub import ModelFacts, push_to_hub
from huggingface_hub import HfApi, constants, hf_hub_download

constants.DOWNLOAD_CHUNK_SIZE = 1000  # so that what arrives is written at once, as it is of files beyond 10 MB

def message_of(action, *arguments, **options):
    try:
        return "no error: " + repr(action(*arguments, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error} / {error.__cause__}"  # Diffusers gives the Hub's answer as the cause
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def saved(make_pipeline, tmp_path):
    """A saved pipeline and the pictures that it makes."""
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", pixels(pipeline)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def asked(hub, method, ending):
    return [bytes_asked for verb, path, bytes_asked in hub.log if verb == method and path.endswith(ending)]


def test_push_list_load_at_a_revision_and_resume(hub, saved, tmp_path):
    folder, expected = saved
    Image.new("L", (8, 8)).save(tmp_path / "seven.png")
    hub.drop[WEIGHTS] = 5000
    code = (
        IN_PACKAGE
        + f"""
facts, images = ModelFacts(license="mit"), {{"a seven": {str(tmp_path / "seven.png")!r}}}
pushed = push_to_hub({str(folder)!r}, "digits", facts, images=images)
listed = HfApi().list_repo_files("writer/digits")
first = HfApi().model_info("writer/digits").sha
numpy.save({str(tmp_path / "loaded.npy")!r}, pixels(DiffusionPipeline.from_pretrained("writer/digits")))

pipe = DiffusionPipeline.from_pretrained("writer/digits", revision=first)
for parameter in pipe.unet.parameters():
    parameter.data.zero_()
pipe.push_to_hub("writer/digits", commit_message="Zeros")  # as Diffusers users do
old = pixels(DiffusionPipeline.from_pretrained("writer/digits", revision=first))
new = pixels(DiffusionPipeline.from_pretrained("writer/digits"))
numpy.save({str(tmp_path / "old.npy")!r}, old)

again = push_to_hub({str(folder)!r}, "writer/digits", replace_card=True)
kept = push_to_hub({str(folder)!r}, "writer/digits", facts, revision="other", private=True)
print(json.dumps([pushed.url, pushed.card, again.card, kept.card, listed, bool((new == old).all())]))
"""
    )
    results, stderr = run_python(code, tmp_path / "home", HF_ENDPOINT=hub.url, HF_TOKEN=WRITER)
    assert results[:4] == [f"{hub.url}/writer/digits", "written", "replaced", "kept"]
    files = hub.repositories["writer/digits"].branches["main"].files
    assert set(results[4]) == set(contents(folder)) | {"README.md", "images/seven.png"}
    assert {path: files[path] for path in contents(folder)} == contents(folder)
    assert results[5] is False
    for name in ("loaded", "old"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)

    assert asked(hub, "GET", WEIGHTS)[:2] == [None, "bytes=5000-"]  # broken off, and gone on with
    assert "Trying to resume download" in stderr
    uploads = [path for verb, path, _ in hub.log if verb == "PUT"]
    assert len(uploads) == len(set(uploads))  # what lies there already is not sent again
    first_card = ModelCard(
        hub.repositories["writer/digits"].commits[commit_before(hub, "Zeros")].files["README.md"].decode()
    )
    assert first_card.data.license == "mit"
    assert first_card.data.widget == [{"text": "a seven", "output": {"url": "images/seven.png"}}]
    assert ModelCard(files["README.md"].decode()).data.license is None
    branches = hub.repositories["writer/digits"].branches
    assert set(branches) == {"main", "other"}
    assert branches["other"].files["README.md"] == files["README.md"]


def commit_before(hub, message):
    oids = list(hub.repositories["writer/digits"].commits.values())
    return oids[[commit.message for commit in oids].index(message) - 1].oid


def test_without_the_package(hub, saved, tmp_path):
    folder, expected = saved
    hub.commit("writer/digits", contents(folder))
    revision = hub.commit("writer/digits", {"notes.txt": b"a later commit"}).oid
    hub.commit("writer/digits", {"pipeline.py": b"raise RuntimeError('a later revision')"})
    code = f"""
from diffusers import DiffusionPipeline, StableDiffusionPipeline
by_code = {{"custom_pipeline": "pipeline", "trust_remote_code": True}}
pipe = DiffusionPipeline.from_pretrained("writer/digits", revision={revision!r}, **by_code)
numpy.save({str(tmp_path / "remote.npy")!r}, pixels(pipe))
try:
    DiffusionPipeline.from_pretrained("writer/digits", revision={revision!r}, custom_pipeline="pipeline")
except ValueError as error:
    refused = str(error)
pipe.save_pretrained({str(tmp_path / "again")!r})
again = DiffusionPipeline.from_pretrained({str(tmp_path / "again")!r}, **by_code)
numpy.save({str(tmp_path / "again.npy")!r}, pixels(again))
print(json.dumps(refused))
"""
    refused, _ = run_python(code, tmp_path / "home", with_package=False, HF_ENDPOINT=hub.url)
    assert "trust_remote_code=True" in refused
    for name in ("remote", "again"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    python_files = [path.rpartition("/")[2] for verb, path, _ in hub.log if verb == "GET" and path.endswith(".py")]
    assert sorted(set(python_files)) == ["diffusers_crosswkv.py", "pipeline.py"]


def test_refusals(hub, saved, tmp_path):
    folder, _ = saved
    good = contents(folder)
    hub.commit("writer/digits", good)
    hub.commit("writer/unsafe", {**without(good, WEIGHTS), "unet/diffusion_pytorch_model.bin": b"x" * 20_000})
    hub.commit("writer/outside", {**good, "tokenizer/../../../outside.txt": b"x", "../outside.txt": b"x"})
    (tmp_path / "unsafe").mkdir()
    code = (
        IN_PACKAGE
        + f"""
load = DiffusionPipeline.from_pretrained
print(json.dumps({{
    "wrong token": message_of(push_to_hub, {str(folder)!r}, "writer/digits", token="hf_wrong"),
    "no token": message_of(push_to_hub, {str(folder)!r}, "writer/digits", token=False),
    "no write access": message_of(push_to_hub, {str(folder)!r}, "writer/digits", token={READER!r}),
    "another namespace": message_of(push_to_hub, {str(folder)!r}, "somebody/digits"),
    "no pipeline": message_of(push_to_hub, {str(tmp_path / "unsafe")!r}, "writer/digits"),
    "missing repository": message_of(load, "writer/gone"),
    "missing revision": message_of(load, "writer/digits", revision="gone"),
    "pickled, pipeline": message_of(diffusers_crosswkv.DIR7Pipeline.from_pretrained, "writer/unsafe"),
    "pickled, any pipeline": message_of(load, "writer/unsafe"),
    "pickled, U-Net": message_of(
        diffusers_crosswkv.DIR7UNet2DConditionModel.from_pretrained, "writer/unsafe", subfolder="unet"
    ),
    "outside": message_of(load, "writer/outside", force_download=True),
    "outside, one file": message_of(hf_hub_download, "writer/outside", "../outside.txt"),
}}))
"""
    )
    messages, _ = run_python(code, tmp_path / "home", HF_ENDPOINT=hub.url, HF_TOKEN=WRITER)
    for what, expected in {
        "wrong token": "PermissionError: The token must be a valid one of the Hub",
        "no token": "PermissionError: The token must be a valid one of the Hub",
        "no write access": "PermissionError: The token must have write access to writer/digits",
        "another namespace": "PermissionError: The token must have write access to somebody/digits",
        "no pipeline": "must hold a model_index.json",
        "missing repository": "Repository Not Found for url",
        "missing revision": "Revision Not Found for url",
        "pickled, pipeline": "Could not find the necessary `safetensors` weights",
        "pickled, any pipeline": "OSError: Error no file named",
        "pickled, U-Net": "diffusion_pytorch_model.safetensors",
        "outside": "cannot contain a '..' path segment",
        "outside, one file": "cannot contain a '..' path segment",
    }.items():
        assert expected in messages[what], (what, messages[what])
        assert not messages[what].startswith("no error")
    assert not list(tmp_path.rglob("outside.txt"))
    assert not list(tmp_path.parent.glob("outside.txt"))
    assert [commit.message for commit in hub.repositories["writer/digits"].commits.values()] == ["initial commit", ""]


def without(files, name):
    return {path: content for path, content in files.items() if path != name}
