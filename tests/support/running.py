"""Scripts run in this process, which has imported everything already, or in ones forked from one that has."""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch

PRELOADED = [  # a new process spends more time on importing these than most scripts of tests take
    "accelerate",
    "diffusers_crosswkv.evaluation.metrics",
    "diffusers_crosswkv.generation",
    "training_process",
    "torch.distributed.fsdp",
]


def run_script(monkeypatch, path, *arguments):
    """Returns the exit status, or the message in its place."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    return stopped.value.code


class ForkedScript:
    """A script in a process of its own, which has imported what `PRELOADED` names; its environment is this one's."""

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
        os.kill(self.process.pid, number)

    def wait(self, timeout=300):
        """Exit status and all that it has printed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        output = self.log.read_text(errors="replace")
        self.log.unlink()
        return self.process.exitcode, output


def become(line, environment, log):
    """In the forked process: the script `line[0]` as if a shell had started it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server ignores
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # as in all tests
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")


def run_script_in_processes(path, arguments, count, environment=None):
    """Exit status and output of each of `count` processes that work together, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(count):
        own = {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | shared).items()}
        processes.append(ForkedScript(path, arguments, own | (environment or {})))
    return [process.wait() for process in processes]
