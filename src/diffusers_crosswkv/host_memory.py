"""Main memory that a computation on a CPU frees and soon wants again."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of glibc's mallopt(3), and what they are set to afterwards: for a process that allocates and frees much
# glibc itself raises two of them up to these limits, but no longer once one of them has been set.
TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD = -1, 64 * 2**20
MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -3, 32 * 2**20
MMAP_MAX, DEFAULT_MMAP_MAX = -4, 65536
NEVER = -1

_lock = threading.Lock()
_inside = 0  # how many computations are


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Inside, where `device` is a CPU, freed memory stays with the process; behind it, it is given back.

    Of itself glibc gives large tensors back to the system as soon as they are freed, and takes memory anew, page by
    page and filled with zeros, for those of the next layer. What is kept is used again: the peak of a U-Net hardly
    grows, that of a program whose tensors differ much in size may.
    Without glibc this does nothing. It holds for the whole process, until the last computation that is inside has
    ended, and replaces what `MALLOC_` variables of the environment have set.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    enter()
    try:
        yield
    finally:
        leave()


def enter() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            libc = ctypes.CDLL(None)
            libc.mallopt(MMAP_MAX, 0)
            libc.mallopt(TRIM_THRESHOLD, NEVER)
        _inside += 1


def leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            libc = ctypes.CDLL(None)
            libc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
            libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
            libc.mallopt(TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD)
            libc.malloc_trim(0)
