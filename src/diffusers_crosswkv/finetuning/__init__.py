"""From arguments to a trained, saved and published model: what `scripts/train_dir7.py` does."""

from .arguments import parse_settings, settings_from
from .config import FinetuningConfig, HubSettings, ModelSettings, RecordSettings, ValidationSettings
from .dry_run import DryRun, try_out
from .report import FinetuningReport
from .run import finetune

__all__ = [
    "DryRun",
    "FinetuningConfig",
    "FinetuningReport",
    "HubSettings",
    "ModelSettings",
    "RecordSettings",
    "ValidationSettings",
    "finetune",
    "parse_settings",
    "settings_from",
    "try_out",
]
