"""Weights of a stock U-Net, loaded into ours by mistake: CrossWKV's parameters would stay at their start."""

from collections.abc import Iterable, Sequence
from typing import Any

from diffusers.loaders.single_file_utils import load_single_file_checkpoint

OF_THE_HUB = ("force_download", "proxies", "token", "cache_dir", "local_files_only", "revision", "disable_mmap")


def of_crosswkv(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if ".crosswkv." in name)


def of_stock_class(config: dict[str, Any]) -> bool:
    return config.get("_class_name") == "UNet2DConditionModel" and not any(n.startswith("crosswkv_") for n in config)


def stock_weights_message(source: object, missing: Sequence[str] = ()) -> str:
    return (
        f"{source} must hold a DIR7UNet2DConditionModel, but parameters of CrossWKV are missing"
        f"{f' ({len(missing)}: {missing[0]}, ...)' if missing else ''}: these are weights of a stock U-Net. Load them "
        "with UNet2DConditionModel and turn that into ours: diffusers_crosswkv.convert_unet(unet, ...)."
    )


def check_single_file(source: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a single file, given as a path, an address or a dictionary already.

    Raises:
        ValueError: CrossWKV's are not among them.
    """
    options = {name: kwargs[name] for name in OF_THE_HUB if name in kwargs}
    checkpoint = source if isinstance(source, dict) else load_single_file_checkpoint(source, **options)
    if not of_crosswkv(checkpoint):
        raise ValueError(stock_weights_message("The checkpoint" if isinstance(source, dict) else source))
    return checkpoint
