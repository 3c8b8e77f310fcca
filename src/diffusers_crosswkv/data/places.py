"""Where a data set lies, and in which form, from the one string that names it."""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from .image_folder import IMAGE_SUFFIXES, walk

REMOTE = re.compile(r"^[a-z0-9]+://")
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
SAVED = (("dataset_info.json", "state.json"), ("dataset_dict.json",))  # what `datasets` writes, and looks for
FORMS = {".tar": "tar", ".parquet": "parquet"}


@dataclass(frozen=True)
class Place:
    """A data set's form (`images`, `tar`, `parquet`, `disk` or `hub`) and its files, or the name it has."""

    form: str
    files: tuple[str, ...]

    @property
    def is_remote(self) -> bool:
        return any(REMOTE.match(name) for name in self.files)


def find_place(data: str) -> Place:
    """What is there as a file or folder comes first, then patterns and addresses, then ids of the Hub.

    Raises:
        FileNotFoundError: `data` looks like a path or a pattern, and nothing is there.
        ValueError: the files have different forms, or one that is not known.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return place_of_folder(path)
    if path.is_file():
        return place_of_files([str(path)])
    if REMOTE.match(data):
        return place_of_files(expand_braces(data))
    if any(sign in data for sign in "*?[{"):
        names = expand_braces(str(path))
        files = sorted(found for name in names for found in glob.glob(name, recursive=True))
        missing = [name for name in names if not glob.glob(name, recursive=True)]
        if missing:
            raise FileNotFoundError(f"`data` must match files, but nothing is at {missing[0]}.")
        return place_of_files(files)
    if not HUB_ID.match(data) or data.startswith(".") or path.suffix in FORMS:
        raise FileNotFoundError(
            f"`data` must be a folder or file that is there, or the id of a data set, got {data!r}."
        )
    return Place("hub", (data,))


def place_of_folder(folder: Path) -> Place:
    if any(all((folder / name).is_file() for name in names) for names in SAVED):
        return Place("disk", (str(folder),))
    for suffix, form in FORMS.items():
        files = sorted(str(path) for path in folder.rglob(f"*{suffix}"))
        if files and next(walk(folder), None) is None:
            return Place(form, tuple(files))
    return Place("images", (str(folder),))


def place_of_files(files: list[str]) -> Place:
    forms = {FORMS.get(Path(name.split("?")[0]).suffix) for name in files}
    form = forms.pop()
    if forms or form is None:
        raise ValueError(
            f"`data` must name files that all end in {' or all in '.join(FORMS)}, or a folder, got {files[0]!r}"
            f"{' and others' if forms else ''} (images: {', '.join(IMAGE_SUFFIXES)} in a folder)."
        )
    return Place(form, tuple(files))


def expand_braces(pattern: str) -> list[str]:
    """`{00..31}` is 32 names, with the zeros kept, as in a shell."""
    found = BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for number in numbers for name in expand_braces(f"{before}{number}{after}")]
