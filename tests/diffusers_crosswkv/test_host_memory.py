import os
import platform
import resource
from pathlib import Path

import pytest
import torch

from diffusers_crosswkv.host_memory import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
MIB = 2**20


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def left_of_freed_tensor() -> int:
    """Bytes that stay with the process of 256 MiB that it has filled and freed."""
    before = resident()
    x = torch.ones(256 * MIB // 4)
    assert resident() - before > 200 * MIB
    del x
    return resident() - before


def test_freed_memory_stays_inside_and_is_given_back_behind():
    cpu = torch.device("cpu")
    before = resident()
    with freed_memory_kept(cpu):
        kept = left_of_freed_tensor()
    assert kept > 200 * MIB
    assert resident() - before < 50 * MIB
    assert left_of_freed_tensor() < 50 * MIB  # as ever


def test_memory_is_kept_until_the_last_of_several_has_ended():
    cpu = torch.device("cpu")
    before = resident()
    with freed_memory_kept(cpu):
        with freed_memory_kept(cpu):
            pass
        assert left_of_freed_tensor() > 200 * MIB
    assert resident() - before < 50 * MIB


def test_behind_it_memory_of_moderate_tensors_stays_as_in_any_process_that_had_larger_ones():
    with freed_memory_kept(torch.device("cpu")):
        pass
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(24 * MIB // 4)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) * os.sysconf("SC_PAGE_SIZE") < 6 * MIB, faults


def test_other_devices_change_nothing():
    with freed_memory_kept(torch.device("meta")):
        assert left_of_freed_tensor() < 50 * MIB
