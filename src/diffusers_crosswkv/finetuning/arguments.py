"""The command line, made from the settings' own dataclasses: names, types, defaults and help are said once."""

import argparse
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]

from ..data.config import DataConfig
from ..data.geometry import CROPS
from ..training import TrainingConfig
from ..training import config as training_config
from .config import (
    FUSIONS,
    PREDICTION_TYPES,
    FinetuningConfig,
    HubSettings,
    ModelSettings,
    RecordSettings,
    ValidationSettings,
)
from .presets import PRESETS, defaults

GROUPS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataConfig,
    "training": TrainingConfig,
    "validation": ValidationSettings,
    "records": RecordSettings,
    "hub": HubSettings,
}
CHOICES = {**training_config.CHOICES, "fusion": FUSIONS, "prediction_type": PREDICTION_TYPES, "crop": CROPS}
RENAMED = {
    ("data", "revision"): "data_revision",
    ("data", "split"): "data_split",
    ("data", "config_name"): "data_config",
}
HIDDEN = {("data", "holdout_examples")}  # said as `validation_examples`, which may be left open
FIELDS = {
    RENAMED.get((group, field.name), field.name): (group, field)
    for group, cls in GROUPS.items()
    for field in dataclasses.fields(cls)
    if (group, field.name) not in HIDDEN
}
# Of Diffusers' train_text_to_image.py, where something else than a name is different.
ELSEWHERE = {
    "pretrained_model_name_or_path": "--model",
    "dataset_name": "--data, which takes a folder, a Hub id or shards",
    "dataset_config_name": "--data_config",
    "random_flip": "--flip",
    "center_crop": "--crop center, which is the default",
    "image_interpolation_mode": "--interpolation",
    "max_train_samples": "--max_examples",
    "train_data_dir": "--data, which takes a folder, a Hub id or shards",
    "train_batch_size": "--batch_size, which counts the images of all processes and accumulated parts",
    "num_train_epochs": "--max_train_steps",
    "scale_lr": "--learning_rate: nothing is scaled",
    "snr_gamma": "--min_snr_gamma",
    "use_8bit_adam": "--optimizer adamw8bit",
    "use_ema": "--ema_decay; 0 keeps no average",
    "offload_ema": "--ema_on_cpu",
    "foreach_ema": "--ema_decay alone",
    "non_ema_revision": "--revision; averages start from the weights that are trained",
    "adam_beta1": "--optimizer; its betas are fixed",
    "adam_beta2": "--optimizer; its betas are fixed",
    "adam_epsilon": "--optimizer; its epsilon is fixed",
    "adam_weight_decay": "--weight_decay",
    "allow_tf32": "--mixed_precision bf16",
    "enable_xformers_memory_efficient_attention": "nothing: PyTorch's own attention saves that memory",
    "input_perturbation": "--noise_offset, or nothing: noise is not perturbed",
    "dream_training": "nothing: DREAM is not there",
    "dream_detail_preservation": "nothing: DREAM is not there",
    "logging_dir": "--output_dir, whose folder logs it is",
    "local_rank": "nothing: launchers tell it by themselves",
    "dataloader_num_workers": "--data_threads",
    "checkpoints_total_limit": "--checkpoints_to_keep",
    "resume_from_checkpoint": "nothing: the same command goes on by itself",
    "validation_epochs": "--validation_steps",
    "validation_prompt": "--validation_prompts",
    "tracker_project_name": "--run_name",
    "rank": "--lora_rank",
    "instance_data_dir": "--data, a folder with a caption in a .txt beside each image",
}


def parse_settings(argv: Sequence[str]) -> tuple[FinetuningConfig, bool]:
    """The settings of a command line, and whether it asks for a dry run.

    What is on the command line goes before the file of `--config`, which goes before `--preset`, which goes before
    the defaults. Names may have dashes or underscores.

    Raises:
        SystemExit: as argparse does, for `--help` and for arguments that it cannot read.
        ValueError, FileNotFoundError: a setting does not fit; the message says what would.
    """
    arguments = vars(make_parser().parse_args([with_underscores(x) for x in argv]))
    dry_run, preset, file = (arguments.pop(name) for name in ("dry_run", "preset", "config"))
    given = {**(read_config_file(file) if file else {}), **arguments}
    preset = given.pop("preset", None) if preset is None else preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
    return settings_from({**(PRESETS[preset] if preset else {}), **given}), dry_run


def settings_from(given: dict[str, Any]) -> FinetuningConfig:
    """Settings by name; the rest have their defaults.

    Raises:
        ValueError, FileNotFoundError: a setting does not fit, or is missing.
    """
    values = {**defaults(given), **given}
    missing = [
        f"--{name}"
        for name, (_, field) in FIELDS.items()
        if field.default is field.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given; --help explains all settings.")
    parts: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in values.items():
        group, field = FIELDS[name]
        parts[group][field.name] = value
    config = FinetuningConfig(**{group: cls(**parts[group]) for group, cls in GROUPS.items()})
    config.check()
    return config


def flat_settings(config: FinetuningConfig) -> dict[str, Any]:
    """All settings by their names on the command line, as JSON values; but for the token, what `--config` reads."""
    values = {}
    for name, (group, field) in FIELDS.items():
        value = getattr(getattr(config, group), field.name)
        values[name] = str(value) if isinstance(value, os.PathLike) else value
    return {name: value for name, value in values.items() if name != "hub_token"}


def with_underscores(token: str) -> str:
    """`--max-train-steps=5` as `--max_train_steps=5`."""
    if not token.startswith("--"):
        return token
    name, equals, value = token[2:].partition("=")
    if name.startswith(("no-", "no_")):
        name = "no-" + name[3:].replace("-", "_")
        return f"--{name}{equals}{value}"
    return f"--{name.replace('-', '_')}{equals}{value}"


class Parser(argparse.ArgumentParser):
    """Tells somebody who knows Diffusers' script where its arguments have gone."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [token for token in unknown if token.startswith("--")]
            self.error("; ".join(explain_unknown(token) for token in options or unknown))
        return arguments

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def explain_unknown(token: str) -> str:
    name = token.removeprefix("--").partition("=")[0]
    if not token.startswith("--"):
        return f"there is no place for {token!r}; values follow their setting's name"
    if name in ELSEWHERE:
        return f"there is no {token.partition('=')[0]} here; use {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name.removeprefix("no-"), [*FIELDS, "preset", "config", "dry_run"], n=1)
    return f"there is no setting --{name}" + (f"; did you mean --{near[0]}?" if near else "; --help lists all")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        usage="%(prog)s (--model MODEL | --from_scratch PRESET) --data DATA --output_dir FOLDER [settings]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        description="Train or fine-tune DIR-7. The same command goes on where it was stopped.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    general = parser.add_argument_group("command")
    general.add_argument("--preset", default=None, help=f"settings that go together: {', '.join(PRESETS)}")
    general.add_argument("--config", type=Path, default=None, metavar="FILE", help="YAML or JSON: {setting: value}")
    general.add_argument(
        "--dry_run", action="store_true", default=False, help="check everything, run one step, leave no trace"
    )
    for group, cls in GROUPS.items():
        section = parser.add_argument_group(group)
        helps, hints = argument_helps(cls), typing.get_type_hints(cls)
        for name, (of_group, field) in FIELDS.items():
            if of_group == group:
                section.add_argument(
                    f"--{name}", **argument_options(name, field, hints[field.name], helps[field.name])
                )
    return parser


def argument_options(name: str, field: dataclasses.Field, hint: Any, text: str) -> dict[str, Any]:
    """How argparse reads a field."""
    options: dict[str, Any] = {"help": text + default_text(name, field)}
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] if is_union(hint) else [hint]
    if bool in kinds:
        return options | {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kinds[0]) is tuple:
        return options | {"nargs": "*", "action": AsTuple, "metavar": "TEXT"}
    if name in CHOICES:
        return options | {"choices": CHOICES[name]}
    plain = next(kind for kind in (int, float, str) if kind in kinds)
    return options | {"type": plain, "metavar": {int: "N", float: "X", str: "TEXT"}[plain]}


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


class AsTuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def default_text(name: str, field: dataclasses.Field) -> str:
    value = defaults({}).get(name, field.default)
    if value is dataclasses.MISSING or value is None or value == ():
        return ""
    return f" [{value}]" if not isinstance(value, tuple) else f" [{' '.join(value)}]"


def argument_helps(cls: type) -> dict[str, str]:
    """What a dataclass says of its fields under "Args:", by name; for argparse, so % is doubled."""
    docstring = inspect.getdoc(cls) or ""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    plain = {
        name.strip(): " ".join(text.split())
        .replace("`", "")
        .replace(" (free)", "")
        .replace("%", "%%")
        .removesuffix(".")
        for names, text in entries
        for name in names.split(",")
    }
    return plain


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML or JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds something that is no setting.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of settings at {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} must be YAML or JSON, but: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold settings as {{name: value}}, got {type(values).__name__}.")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    unknown = [name for name in values if name not in FIELDS and name != "preset"]
    if unknown:
        raise ValueError(f"{path}: " + "; ".join(explain_unknown(f"--{name}") for name in unknown))
    return {name: value if name == "preset" else checked(path, name, value) for name, value in values.items()}


def checked(path: Path, name: str, value: Any) -> Any:
    """`value` as the setting's type; YAML reads 1e-4 as text.

    Raises:
        ValueError: it has another type.
    """
    group, field = FIELDS[name]
    hint = typing.get_type_hints(GROUPS[group])[field.name]
    kinds = typing.get_args(hint) if is_union(hint) else (hint,)
    if isinstance(value, list) and any(typing.get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if any(isinstance(value, kind) for kind in kinds if isinstance(kind, type)) and not (
        isinstance(value, bool) and bool not in kinds
    ):
        return value
    raise ValueError(f"{path}: `{name}` must be {getattr(hint, '__name__', hint)}, got {value!r}.")
