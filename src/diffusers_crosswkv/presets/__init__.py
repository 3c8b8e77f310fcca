"""UNet configs in Diffusers' config.json form, one file per preset."""

import json
from importlib import resources
from typing import Any


def load_preset(name: str) -> dict[str, Any]:
    """The config of a preset: `DIR7UNet2DConditionModel.from_config(load_preset("dir7_s"))`, weights untrained.

    | name | parameters | made for | text encoder, width |
    |---|---|---|---|
    | `dir7_tiny` | 0.47 M | 8 x 8 grey pixels, the quickstart | the quickstart's own, 64 |
    | `dir7_s` | 38.97 M | latents of 256 px images (32 x 32), or 32 to 64 px images themselves | CLIP ViT-L/14, 768 |
    | `dir7_h` | 781.2 M | latents of 256 to 512 px images (32 to 64 square) | CLIP ViT-L/14, 768 |
    | `dir7_sd15` | 861.6 M | latents, the config of Stable Diffusion 1.5 (859.5 M) | CLIP ViT-L/14, 768 |
    | `dir7_sdxl` | 2591 M | latents, the config of Stable Diffusion XL (2567 M) | CLIP ViT-L/14 + bigG/14, 2048 |

    Parameters are of the U-Net alone. The paper says of its models' text encoder that it is a frozen CLIP, and 38.9 M
    and 779 M of their sizes, not how they are made up: `dir7_s` and `dir7_h` are U-Nets of those sizes. Their text
    width is that of the CLIP that Stable Diffusion 1.x has. For another encoder or for pixels change the config:
    `from_config(load_preset("dir7_s"), cross_attention_dim=1024, in_channels=3, out_channels=3, sample_size=64)`.

    The last two take every weight of the stock U-Net by name and shape; see [`convert_unet`].

    Raises:
        ValueError: there is no preset of that name; the message lists those that are there.
    """
    names = preset_names()
    if name not in names:
        raise ValueError(f"`name` must be one of the presets {', '.join(names)}, got {name!r}.")
    return json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))


def preset_names() -> list[str]:
    """Those that [`load_preset`] knows."""
    files = resources.files(__name__).iterdir()
    return sorted(path.name.removesuffix(".json") for path in files if path.name.endswith(".json"))
