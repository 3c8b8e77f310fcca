"""A training from its settings to a saved and published result."""

import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..environment import environment
from ..files import write_json
from ..hub import FROM_SCRATCH, ModelFacts, Pushed, check_may_push, push_to_hub, save_facts
from ..hub.facts import REPOSITORY_ID
from ..training import TrainingResult, train
from ..training.config import check_output_dir as check_training_dir
from ..training.config import check_stored_settings, claim_output_dir
from ..training.sharding import make_accelerator
from .arguments import flat_settings
from .config import FinetuningConfig
from .loss_plot import plot_loss
from .preparation import Prepared, describe_start, prepare
from .records import LOGS_DIR, METRICS_FILE, MetricsFile, Records, Trackers, check_trackers, read_metrics
from .report import FinetuningReport, Skipped
from .results import save_result
from .state_log import STATES_FILE, StateLog
from .validation import Validation, latest_picture

SETTINGS_FILE = "finetuning.json"
LOSS_FILE = "loss.png"
FACTS_FILE = "facts.json"
# What changes the result and is not of `TrainingConfig`; of data and model the run itself knows whether they changed.
DECISIVE = (
    "fusion",
    "prediction_type",
    "zero_terminal_snr",
    "prepend_endoftext",
    "captions",
    "resolution",
    "crop",
    "flip",
    "interpolation",
    "buckets",
    "max_aspect_ratio",
    "image_column",
    "caption_column",
    "data_config",
    "data_split",
    "data_revision",
    "streaming",
)
# Of a stream, which has no names of images to know itself again by.
DECISIVE_OF_STREAMS = ("stream_block", "validation_examples")


def finetune(config: FinetuningConfig, progress: bool = True) -> FinetuningReport | None:
    """Train, or go on, save the result, and publish it if that was asked for.

    Everything lies in `output_dir`: `finetuning.json` and `training.json` (settings), `checkpoints/`, `metrics.jsonl`,
    `logs/` (TensorBoard), `validation/` (pictures), and in the end the result, `loss.png` and `facts.json`.

    Returns:
        What was done, on the main process; None on the others.

    Raises:
        OSError: a file, a model or the Hub cannot be reached.
        PermissionError: the result could not be published; found out before training starts.
        ValueError: settings do not fit; the message says what would.
        ModuleNotFoundError: a tracker's package is not installed.
        FloatingPointError, NoSpaceLeft, OutOfMemory, TrainingInterrupted: see [`train`].
    """
    config.check()
    accelerator = make_accelerator(config.training)
    repo_id = check_before(config) if accelerator.is_main_process else None
    prepared = prepare(config, accelerator, progress)
    if accelerator.is_main_process:
        print(describe_start(prepared.start), flush=True)
        claim(config)
    accelerator.wait_for_everyone()
    records = make_records(config)
    prompts, folder = config.validation.prompts(), Path(config.training.output_dir)
    validation = Validation(prepared.start, config.validation, prompts, prepared.data.holdout, records, folder)
    states = make_state_log(config, prompts, records)
    try:
        trained = train(
            config.training,
            prepared.start.models,
            prepared.data,
            callbacks=(records, validation, *states),
            progress=progress,
            caches=prepared.caches,
            accelerator=accelerator,
        )
    finally:
        records.close()
        for log in states:
            log.close()
    skipped = skipped_by_all([*prepared.data.findings(), *trained.tally.reasons.items(), *validation.broken])
    if not accelerator.is_main_process:
        return None
    return finish(config, prepared, trained, validation, accelerator, repo_id, skipped)


def skipped_by_all(findings: list[tuple[str, str]]) -> Skipped:
    """What any process has left out, each image once; called on all of them."""
    return Skipped.of(dict.fromkeys(gather_object(findings)))


def check_before(config: FinetuningConfig) -> str | None:
    """What would be a pity to find out after hours; returns where the result will be published, if it will."""
    check_output_dir(config)
    check_trackers(config.records.trackers)
    if not config.hub.push_to_hub:
        return None
    return check_may_push(config.hub.hub_model_id or Path(config.training.output_dir).name, config.hub.hub_token)


def check_output_dir(config: FinetuningConfig) -> None:
    """Refuse a folder that a training could not use, and change nothing.

    Raises:
        FileExistsError, PermissionError, ValueError: see [`claim_output_dir`].
    """
    folder = Path(config.training.output_dir)
    check_training_dir(config.training)
    check_settings(config)
    nearest = nearest_folder(folder)
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{nearest} must be a folder that you may write to.")


def nearest_folder(path: Path) -> Path:
    """The first of a path and its parents that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def claim(config: FinetuningConfig) -> None:
    """Make the output folder this run's, or find that it is.

    Raises:
        FileExistsError, ValueError: it holds something else, or a run with other settings.
    """
    claim_output_dir(config.training)
    check_settings(config)
    write_json(Path(config.training.output_dir, SETTINGS_FILE), flat_settings(config), indent=2)


def check_settings(config: FinetuningConfig) -> None:
    """Raises ValueError if the folder holds a run with other settings than these, beside those of `TrainingConfig`."""
    if not config.training.has_checkpoints:
        return
    path, settings = Path(config.training.output_dir, SETTINGS_FILE), flat_settings(config)
    if path.is_file():
        decisive = (*DECISIVE, *DECISIVE_OF_STREAMS) if config.data.streaming else DECISIVE
        check_stored_settings(path, {name: settings[name] for name in decisive})


def make_records(config: FinetuningConfig) -> Records:
    folder = Path(config.training.output_dir)
    trackers = Trackers(config.records.trackers, config.records.run_name or folder.name, folder / LOGS_DIR)
    return Records(MetricsFile(folder / METRICS_FILE), trackers, flat_settings(config), config.records.log_every)


def make_state_log(config: FinetuningConfig, prompts: Sequence[str], records: Records) -> list[StateLog]:
    """One if it was asked for."""
    every = config.records.log_states_every
    file = MetricsFile(Path(config.training.output_dir) / STATES_FILE)
    return [] if every is None else [StateLog(file, prompts or ("",), every, records.trackers)]


def finish(
    config: FinetuningConfig,
    prepared: Prepared,
    trained: TrainingResult,
    validation: Validation,
    accelerator: Accelerator,
    repo_id: str | None,
    skipped: Skipped,
) -> FinetuningReport:
    """Save, plot, tell and publish; on the main process."""
    folder = Path(config.training.output_dir)
    prompt = next(iter(validation.prompts), None) or prepared.data.example(0, 0).caption or "a prompt of yours"
    saved = save_result(prepared.start, trained, config.training.weights, folder, prompt)
    plot = folder / LOSS_FILE
    plot_loss(plot, read_metrics(folder / METRICS_FILE), title=folder.name)
    facts = facts_of(config, prepared, trained, accelerator, prompt)
    save_facts(facts, folder / FACTS_FILE)
    skipped.save(folder)
    pushed = None if repo_id is None else publish(config, saved.path, repo_id, facts)
    return FinetuningReport(
        steps=trained.steps,
        seconds=trained.seconds,
        images_per_second=trained.steps * config.training.batch_size / max(trained.seconds, 1e-9),
        bad_steps=trained.tally.bad_steps,
        skipped=skipped,
        result=saved.path,
        example=saved.example,
        loss_plot=plot,
        pictures=latest_picture(folder),
        url=None if pushed is None else pushed.url,
    )


def publish(config: FinetuningConfig, path: Path, repo_id: str, facts: ModelFacts) -> Pushed:
    hub = config.hub
    return push_to_hub(
        path,
        repo_id,
        facts,
        grid=latest_picture(Path(config.training.output_dir)),
        private=hub.hub_private or None,
        token=hub.hub_token,
        commit_message=f"Training of {config.training.max_train_steps} steps",
    )


def facts_of(
    config: FinetuningConfig, prepared: Prepared, trained: TrainingResult, accelerator: Accelerator, prompt: str
) -> ModelFacts:
    """What the model card says."""
    base = prepared.start.base_model
    is_hub_id = not Path(base).exists() and bool(REPOSITORY_ID.fullmatch(base))
    where = environment(accelerator.device)
    on_cpu = accelerator.device.type == "cpu"
    hardware = f"{where['threads']} of {where['cores']} CPU cores" if on_cpu else str(where["device"])
    count = accelerator.num_processes
    examples = prepared.data.examples_per_epoch
    number = "a stream" if examples is None else f"{examples:,} images"
    name = Path(config.data.data).name if Path(config.data.data).exists() else config.data.data
    what = {"all": "all weights", "attn2": "cross-attention", "lora": "LoRA", "state": "initial states"}
    return ModelFacts(
        license=config.hub.license,
        base_model=base if base == FROM_SCRATCH or is_hub_id else None,
        datasets=(name,) if is_dataset_id(config) else (),
        data=f"{name}, {number}, {prepared.data_config.resolution} px",
        captions=None if config.data.captions == "text" else f"made by `{config.data.captions}`",
        steps=trained.steps,
        batch_size=config.training.batch_size,
        hardware=hardware if count == 1 else f"{count} x {hardware}",
        training_seconds=round(trained.seconds, 1),
        summary=f"Training of {what[config.training.weights]}.",
        example_prompt=prompt,
        guidance_scale=config.validation.validation_guidance_scale,
        num_inference_steps=config.validation.validation_inference_steps,
    )


def is_dataset_id(config: FinetuningConfig) -> bool:
    """Whether the data is on the Hub under a name that the card can link."""
    name = config.data.data
    return "/" in name and not Path(name).exists() and bool(REPOSITORY_ID.fullmatch(name))
