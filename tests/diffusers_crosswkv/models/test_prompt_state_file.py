"""Prompt states on the disk: whole files, and what is refused when they are read."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from diffusers_crosswkv import PromptState


@pytest.fixture
def state(make_unet):
    with torch.no_grad():
        return make_unet().encode_prompt(torch.randn(3, 4, 24))


def test_a_failed_save_keeps_the_old_file(state, tmp_path, monkeypatch):
    path = tmp_path / "prompt.safetensors"
    state.save(path)
    before = path.read_bytes()

    def disk_full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        state.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["prompt.safetensors"]


def test_files_that_are_no_prompt_states(state, tmp_path):
    path = tmp_path / "prompt.safetensors"
    with pytest.raises(FileNotFoundError, match="no prompt state at"):
        PromptState.load(path)
    state.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        PromptState.load(path)
    safetensors.torch.save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no prompt state"):
        PromptState.load(path)
    broken = state.to()
    broken.states[0][0, 0, 0, 0] = torch.inf
    broken.save(path)
    with pytest.raises(ValueError, match=r"must be finite, but states.0 is not"):
        PromptState.load(path)


def test_saving_makes_folders_and_names_what_is_in_the_way(state, tmp_path):
    path = tmp_path / "states" / "of today" / "prompt.safetensors"
    state.save(path)
    assert len(PromptState.load(path)) == 3
    with pytest.raises(IsADirectoryError, match=r"of today must be a file, but is a folder; save to .*of today/"):
        state.save(path.parent)


def test_a_loaded_state_is_independent_of_its_file(state, tmp_path):
    path, other = tmp_path / "prompt.safetensors", tmp_path / "other.safetensors"
    state.save(path)
    replace(state, states=tuple(x + 1 for x in state.states)).save(other)
    loaded = PromptState.load(path)
    shutil.copyfile(other, path)
    assert all(torch.equal(x, y) for x, y in zip(loaded.states, state.states, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_files_of_dtypes_that_no_state_has(state, tmp_path, dtype):
    path = tmp_path / "prompt.safetensors"
    replace(state, last_token=state.last_token.to(dtype)).save(path)
    with pytest.raises(ValueError, match=f"must hold float16, .*, float64, but last_token is {dtype}"):
        PromptState.load(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (4, "format 4, this version reads up to 3; upgrade"),
        (2, "format 2, this version reads 3; encode the prompt again"),
    ],
)
def test_another_format_is_named(state, tmp_path, monkeypatch, version, message):
    path = tmp_path / "prompt.safetensors"
    monkeypatch.setattr("diffusers_crosswkv.models.prompt_state_file.FORMAT_VERSION", version)
    state.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=message):
        PromptState.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"last_token": x.last_token[:2]}, r"states.0 must hold 2 prompts, .*, got \[3, 8, 2, 8\]"),
        (lambda x: {"last_token": x.last_token[0]}, r"last_token must have 2 dimensions, got \[24\]"),
        (lambda x: {"fingerprint": x.fingerprint[0]}, r"fingerprint must have 2 dimensions, got \[16\]"),
        (lambda x: {"states": (x.states[0][0], *x.states[1:])}, r"states.0 must have 4 dimensions, got \[8, 2, 8\]"),
        (
            lambda x: {"transitions": (x.transitions[0][..., :7], *x.transitions[1:])},
            r"transitions.0 must be \[B, 8 at most, 8, 8\], as states.0 is, got \[3, 4, 8, 7\]",
        ),
    ],
)
def test_tensors_that_do_not_go_together(state, tmp_path, change, message):
    path = tmp_path / "prompt.safetensors"
    replace(state, **change(state)).save(path)
    with pytest.raises(ValueError, match=f"is damaged: {message}; save the prompt state again"):
        PromptState.load(path)
