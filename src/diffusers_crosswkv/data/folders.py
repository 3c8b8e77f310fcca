"""Folders below a folder, links to folders among them."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """`root` and each folder below it, under the name that leads there, and the names of the files in it.

    Links are followed, but each real folder comes once: under its own name if it lies below `root`, else under the
    first link to it or to what it lies in. Folders whose names start with a dot are not looked at.
    """
    seen: set[str] = set()
    waiting = [root]
    for top in waiting:  # grows by the links, which come after all that lies here itself
        for folder, subfolders, files in os.walk(top):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            waiting += [Path(folder, name) for name in subfolders if os.path.islink(os.path.join(folder, name))]
            yield Path(folder), files
