"""Scripts run in this process, which has imported everything already."""

import runpy
import sys

import pytest


def run_script(monkeypatch, path, *arguments):
    """Returns the exit status, or the message in its place."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    return stopped.value.code
