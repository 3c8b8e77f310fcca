"""Scripts run in this process, which has imported everything already, or in several that import everything once."""

import multiprocessing
import os
import runpy
import socket
import sys

import pytest


def run_script(monkeypatch, path, *arguments):
    """Returns the exit status, or the message in its place."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    return stopped.value.code


def run_script_in_processes(path, arguments, count, preload):
    """Exit statuses of `count` processes that work together, as torchrun starts them.

    They are forked from one that has imported the modules `preload`, which takes longer than what they do.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    line = [str(path), *map(str, arguments)]
    processes = [context.Process(target=run_one_of, args=(line, rank, count, port)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def run_one_of(line, rank, count, port):
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in here.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")
