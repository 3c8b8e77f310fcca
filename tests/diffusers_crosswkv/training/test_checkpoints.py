import pytest
import safetensors.torch
import torch

from diffusers_crosswkv.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)


def checkpoint(step):
    return Checkpoint(step, {"unet": {"weight": torch.full((3,), float(step))}}, {"ema_step": step})


def test_round_trip_and_rotation(tmp_path):
    for step in (5, 10, 100):
        path = save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["checkpoint-00000010", "checkpoint-00000100"]
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.values) == (100, {"ema_step": 100})
    assert torch.equal(loaded.tensors["unet"]["weight"], torch.full((3,), 100.0))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(5), keep=2)

    def disk_full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(6), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000005"]
    assert load_latest_checkpoint(tmp_path).step == 5


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "{", "null", '{"step": 6, "values": {}, "sha256": {}}'])
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path, damage):
    save_checkpoint(tmp_path, checkpoint(5), keep=2)
    path = save_checkpoint(tmp_path, checkpoint(6), keep=2)
    file = path / "unet.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-4])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    else:
        (path / "manifest.json").write_text(damage)
    messages = []
    assert load_latest_checkpoint(tmp_path, warn=messages.append).step == 5
    assert len(messages) == 1
    assert "checkpoint-00000006 is damaged" in messages[0]
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)


def test_no_checkpoint_and_only_damaged_ones(tmp_path):
    assert load_latest_checkpoint(tmp_path / "nothing") is None
    path = save_checkpoint(tmp_path, checkpoint(6), keep=2)
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="all 1 are damaged"):
        load_latest_checkpoint(tmp_path, warn=lambda message: None)
