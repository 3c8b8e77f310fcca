"""The JSON file beside an image: all settings, so that the image can be made again, and what they led to."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

import diffusers_crosswkv

from ..environment import environment
from .config import ImageConfig, ModelConfig

FORMAT, FORMAT_VERSION = "diffusers_crosswkv image", 1
OTHER_VERSIONS = ("accelerate", "numpy", "peft", "pillow", "safetensors")


@dataclass(frozen=True)
class ImageRecord:
    """What is written beside an image.

    Args:
        model, image: all that is needed to make the image again.
        pixels_sha256: of the image's mode, size and pixels.
        pipeline: the classes that made it.
        file_sha256: of the local files that it was made with.
        text: tokens and windows of the prompt.
        environment: date, device, versions.
        seconds: how long it took.
        flagged: a safety checker blackened the image.
    """

    model: ModelConfig
    image: ImageConfig
    pixels_sha256: str
    pipeline: dict[str, str]
    file_sha256: dict[str, str]
    text: dict[str, int] | None
    environment: dict[str, str | int]
    seconds: float
    flagged: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}


def read_record(path: Path) -> ImageRecord:
    """Read what a run wrote beside an image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no record of an image, or a newer version wrote it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no record of an image at {path}; `scripts/generate.py` writes one per image."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise KeyError("format")
        version = values.pop("format_version")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {version}, this version reads up to {FORMAT_VERSION}; upgrade diffusers_crosswkv."
            )
        model, image = ModelConfig(**values.pop("model")), ImageConfig(**values.pop("image"))
        model = replace(model, loras=tuple(model.loras), lora_scales=tuple(model.lora_scales))
        return ImageRecord(model, image, **values)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no record of an image; give the JSON file that lies beside one.") from error


def pixels_sha256(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def file_hashes(model: ModelConfig, image: ImageConfig) -> dict[str, str]:
    """SHA-256 of the LoRA and prompt state files, of a folder's safetensors files."""
    paths = []
    for given in (*model.loras, *([] if image.prompt_state is None else [image.prompt_state])):
        paths += [given] if Path(given).is_file() else sorted(map(str, Path(given).glob("*.safetensors")))
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def surroundings(pipeline: DiffusionPipeline) -> dict[str, str | int]:
    """Date, device, versions of what has a part in an image."""
    versions = {"diffusers_crosswkv": diffusers_crosswkv.__version__}
    for name in OTHER_VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return environment(pipeline.device) | versions


def compare(recorded: ImageRecord, made: ImageRecord) -> str:
    """A sentence for a person: whether an image made again is the same, and if not, what may be the reason."""
    if recorded.pixels_sha256 == made.pixels_sha256:
        return "the same pixels as recorded"
    asked = changes(asdict(recorded.model) | asdict(recorded.image), asdict(made.model) | asdict(made.image))
    if asked:
        return f"other settings than recorded: {asked}"
    found = [
        changes(before, after)
        for before, after in (
            (recorded.file_sha256, made.file_sha256),
            (recorded.pipeline, made.pipeline),
            (recorded.environment, made.environment | {"date": recorded.environment.get("date", "")}),
        )
    ]
    return f"not the pixels that were recorded; {'; '.join(filter(None, found)) or 'the weights may have changed'}"


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return "; ".join(f"{name} was {before.get(name)}, is {after.get(name)}" for name in names)
