"""Scripts run in this process, which has imported everything already, or in ones forked from one that has."""

import multiprocessing.connection
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

PRELOADED = [  # a new process spends more time on importing these than most scripts of tests take
    "accelerate",
    "diffusers_crosswkv.data.digits",
    "diffusers_crosswkv.evaluation.metrics",
    "diffusers_crosswkv.generation",
    "diffusers_crosswkv.training.text",
    "sklearn.datasets",
    "torch.distributed.fsdp",
]


def run_script(monkeypatch, path, *arguments):
    """Returns the exit status, or the message in its place."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    return stopped.value.code


class ForkedScript:
    """A script in a process of its own; its environment is this one's, but for what libraries read when imported.

    Python has one server that forks: whoever starts it, here or in the library, says what it has imported.
    """

    def __init__(self, path, arguments=(), environment=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with tempfile.NamedTemporaryFile(delete=False) as log:
            self.log = Path(log.name)
        line = [str(path), *map(str, arguments)]
        self.process = context.Process(target=become, args=(line, dict(os.environ) | (environment or {}), log.name))
        self.process.start()

    def poll(self):
        """The exit status, None while it runs."""
        return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def wait(self, timeout=300):
        """Exit status, that of a kill after `timeout` seconds, and all that was printed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        output = self.log.read_text(errors="replace")
        self.log.unlink()
        return self.process.exitcode, output


def become(line, environment, log):
    """In the forked process: the script `line[0]` as if a shell had started it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # as in all tests
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")


def run_script_in_processes(path, arguments, count, environment=None, timeout=300):
    """What each of `count` processes that work together, as torchrun starts them, has printed.

    Where one fails, or after `timeout` seconds, the others are killed and the test fails.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # until all have ended
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    processes = []
    for rank in range(count):
        own = {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | shared).items()}
        processes.append(ForkedScript(path, arguments, own | (environment or {})))
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0 and not any(x.poll() for x in processes):
        running = [x.process.sentinel for x in processes if x.poll() is None]
        if not running:
            break
        multiprocessing.connection.wait(running, left)
    ended = [x.wait(timeout=0) for x in processes]
    assert [status for status, _ in ended] == [0] * count, ended
    return [output for _, output in ended]
