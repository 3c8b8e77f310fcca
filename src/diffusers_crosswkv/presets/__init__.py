"""UNet configs in Diffusers' config.json form, one file per preset."""

import json
from importlib import resources
from typing import Any


def load_preset(name: str) -> dict[str, Any]:
    """The config of a preset: `DIR7UNet2DConditionModel.from_config(load_preset("dir7_tiny"))`.

    Raises:
        ValueError: there is no preset of that name; the message lists those that are there.
    """
    folder = resources.files(__name__)
    names = sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json"))
    if name not in names:
        raise ValueError(f"`name` must be one of the presets {', '.join(names)}, got {name!r}.")
    return json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))
