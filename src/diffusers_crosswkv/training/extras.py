"""Packages that only some settings need."""

import importlib.util


def required(module: str, setting: str, package: str | None = None) -> None:
    """Raise ImportError, with what to install, unless `module` is there."""
    if importlib.util.find_spec(module) is None:
        package = package or module
        raise ImportError(f"`{setting}` needs the package {package}, which is not installed: pip install {package}")
