import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from diffusers_crosswkv.training import tensor_cache
from diffusers_crosswkv.training.tensor_cache import TensorCache, cache_key, digest_of

KEY = cache_key(image="a", size=[8, 8])
WRITER = """
import runpy, sys, torch
cache = runpy.run_path(sys.argv[1])["TensorCache"](sys.argv[2])
for _ in range(100):
    cache.put(sys.argv[3], {"x": torch.full((999,), 9.0)})
"""  # the module alone: importing all of the package takes much longer than what is tested


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "cache")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_gives_what_was_put(cache, dtype):
    assert cache.get(KEY) is None and cache.size() == (0, 0)
    tensors = {"x": torch.randn(3, 4).to(dtype).T, "empty": torch.zeros(0, 2), "scalar": torch.tensor(3.0)}
    cache.put(KEY, tensors)
    found = cache.get(KEY)
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype and torch.equal(found[name], x)
    assert cache.get(cache_key(image="b")) is None
    assert cache.size() == (1, os.path.getsize(cache.path(KEY)))
    cache.put(KEY, {"x": torch.ones(2)})
    assert torch.equal(cache.get(KEY)["x"], torch.ones(2)) and cache.size().entries == 1


def truncated(data):
    return data[: len(data) // 2]


def zeroed(data):
    """As after a loss of power: all sizes right, the data gone."""
    return data[:-64] + bytes(64)


def flipped(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("damage", [truncated, zeroed, flipped, lambda data: b"", lambda data: b"no tensors at all"])
def test_a_damaged_file_is_none_and_is_replaced(cache, damage):
    cache.put(KEY, {"x": torch.randn(100)})
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, {"x": torch.ones(3)})
    assert torch.equal(cache.get(KEY)["x"], torch.ones(3))


def test_a_file_under_another_key_is_none(cache):
    cache.put(KEY, {"x": torch.ones(3)})
    other = cache_key(image="b")
    cache.path(other).parent.mkdir(exist_ok=True)
    cache.path(KEY).rename(cache.path(other))
    assert cache.get(other) is None


def test_threads_and_processes_share_a_folder(cache):
    """Threads and another process write one key and read it: always one of what was written, whole."""
    command = [sys.executable, "-c", WRITER, tensor_cache.__file__, str(cache.folder), KEY]

    def write_and_read(number):
        seen = set()
        for _ in range(20):
            cache.put(KEY, {"x": torch.full((999,), float(number))})
            (value,) = cache.get(KEY)["x"].unique().tolist()
            seen.add(value)
        return seen

    with ThreadPoolExecutor(5) as pool:
        other = pool.submit(subprocess.run, command, check=True)
        seen = set()
        while not other.done():
            seen |= set().union(*pool.map(write_and_read, range(4)))
        other.result()
    assert 9 in seen and seen <= {0, 1, 2, 3, 9}
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [f"{KEY}.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"The cache in .*/cache must be writable and have space"):
        TensorCache(tmp_path / "cache").put(KEY, {"x": torch.ones(1)})


def test_a_full_disk_leaves_nothing_behind(cache, monkeypatch):
    cache.put(KEY, {"x": torch.ones(3)})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device; free some, or choose another folder"):
        cache.put(KEY, {"x": torch.zeros(3)})
    assert torch.equal(cache.get(KEY)["x"], torch.ones(3))
    assert len(list(cache.path(KEY).parent.iterdir())) == 1


def test_keys_and_digests_cover_all():
    assert cache_key(a=1, b=[2]) == cache_key(b=[2], a=1)
    assert len({cache_key(a=1, b=[2]), cache_key(a=1, b=[3]), cache_key(a="1", b=[2]), cache_key(a=1)}) == 4
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    config = {"width": 3, "_name_or_path": "here"}
    digest = digest_of(model, config)
    assert digest_of(model, config | {"_name_or_path": "there"}) == digest
    others = {digest, digest_of(model, config | {"width": 4}), digest_of(model.double(), config)}
    model.float()
    assert digest_of(model, config) == digest
    model[1].running_mean[2] += 1e-6
    others.add(digest_of(model, config))
    assert len(others) == 4
