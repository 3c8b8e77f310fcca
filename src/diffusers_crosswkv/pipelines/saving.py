"""A pipeline on disk, whole or not at all."""

import shutil
from pathlib import Path

from diffusers import DiffusionPipeline


def save_whole(pipeline: DiffusionPipeline, target: Path) -> None:
    """`save_pretrained` that leaves a complete folder or none; what was there is replaced at the end."""
    temporary, old = (target.with_name(f".{target.name}.{ending}") for ending in ("tmp", "old"))
    for rest in (temporary, old):
        shutil.rmtree(rest, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)
