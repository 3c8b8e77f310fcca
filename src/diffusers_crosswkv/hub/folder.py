"""A saved pipeline on disk: whether it is complete and safe to publish, and what it says of itself."""

import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from ..remote_code import LIBRARY, PIPELINE_FILE, UNET_FILE

INDEX = "model_index.json"
UNSAFE_SUFFIXES = frozenset((".bin", ".ckpt", ".joblib", ".msgpack", ".pkl", ".pt", ".pth"))
ROOT_FILES = (INDEX, PIPELINE_FILE)


@dataclass(frozen=True)
class SavedPipeline:
    """A folder that `save_pretrained` wrote.

    Args:
        path: the folder.
        files: what belongs to the pipeline, relative to it.
        pipeline_class: name of its class.
        has_pipeline_code: whether it carries the code of that class.
        components: `{name: [library, class name]}`, those that are there.
        parameters: of the U-Net, and of all components together.
        unet_config: the U-Net's `config.json`.
    """

    path: Path
    files: tuple[Path, ...]
    pipeline_class: str
    has_pipeline_code: bool
    components: dict[str, tuple[str, str]]
    parameters: tuple[int, int]
    unet_config: dict[str, Any]


def read_saved_pipeline(folder: str | os.PathLike) -> SavedPipeline:
    """Check that `folder` is a pipeline that others can load, and read what the model card says of it.

    Only what belongs to the pipeline counts: `model_index.json`, `pipeline.py` and the folders of its components.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is damaged or could run code when it is loaded (weights that are not safetensors).
    """
    path = Path(folder)
    index = read_index(path)
    components = {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None and not name.startswith("_")
    }
    files = [path / name for name in ROOT_FILES if (path / name).is_file()]
    for name in components:
        if Path(name).name != name:
            raise ValueError(f"{path / INDEX} must name components inside its folder, got {name!r}.")
        if not (path / name).is_dir():
            raise FileNotFoundError(f"{path} must hold a folder {name!r}, which its {INDEX} names; save it again.")
        files += sorted(
            file for file in (path / name).rglob("*") if file.is_file() and "__pycache__" not in file.parts
        )
    for file in files:
        check_safe(file)
    counts = {name: count_parameters(path / name) for name in components}
    check_code(path, index, components)
    unet_config = path / "unet" / "config.json"
    return SavedPipeline(
        path=path,
        files=tuple(file.relative_to(path) for file in files),
        pipeline_class=index["_class_name"],
        has_pipeline_code=(path / PIPELINE_FILE).is_file(),
        components=components,
        parameters=(counts.get("unet", 0), sum(counts.values())),
        unet_config=json.loads(unet_config.read_text(encoding="utf-8")) if unet_config.is_file() else {},
    )


def read_index(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"There must be a folder at {path}, written by `save_pretrained`; there is none.")
    if not (path / INDEX).is_file():
        raise FileNotFoundError(
            f"{path} must hold a {INDEX}, as a pipeline's `save_pretrained` writes it; it has none."
        )
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / INDEX} is damaged ({error}); save the pipeline again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{path / INDEX} must name its pipeline's class; save the pipeline again.")
    return index


def check_safe(file: Path) -> None:
    """Refuse what runs code when it is read as weights, whatever it is called."""
    with file.open("rb") as opened:
        start = opened.read(2)
    pickled = start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if start == b"PK" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            pickled = any(name.endswith(".pkl") for name in archive.namelist())
    if pickled or file.suffix in UNSAFE_SUFFIXES:
        raise ValueError(
            f"{file} must not be published: loading such a file can run any code. Save the pipeline again with "
            "`safe_serialization=True`, the default, and delete this file."
        )


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a component; 0 for a scheduler or tokenizer.

    Of several variants the largest counts.
    """
    for index in folder.glob("*.safetensors.index*.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise FileNotFoundError(f"{folder} must hold {missing[0]}, which {index.name} names; save it again.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} must hold weights as *.safetensors, and has none; save the pipeline again.")
    sizes: dict[str, int] = {}
    for file in weights:
        try:
            with safetensors.safe_open(file, "pt") as opened:
                shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no complete safetensors file ({error}); save the pipeline again.") from error
        sizes |= {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(sizes.values())


def check_code(path: Path, index: dict[str, Any], components: dict[str, tuple[str, str]]) -> None:
    """Our components must bring their code: else nobody without this package can load them."""
    needed = [path / name / UNET_FILE for name, (library, _) in components.items() if library == LIBRARY]
    if index["_class_name"].startswith("DIR7"):
        needed.append(path / PIPELINE_FILE)
    for file in needed:
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} must hold {file.relative_to(path)}, the code for machines without this package: it was saved "
                "by an older version. Load the pipeline and save it again."
            )
