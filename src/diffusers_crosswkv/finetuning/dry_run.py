"""What a training would take: everything is checked and two steps are made, in a folder that is gone afterwards."""

import dataclasses
import itertools
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from torch import nn

from ..data.record_source import RecordSource
from ..files import holds_something
from ..hub.card import duration
from ..models.text_windows import window_length
from ..training import train
from ..training.callbacks import Callback, StepMetrics
from ..training.sharding import make_accelerator
from .config import FinetuningConfig
from .preparation import CAPTIONS_READ, Prepared, describe_start, prepare, read_captions
from .report import Skipped
from .run import check_before, nearest_folder

STEPS = 2  # the first one is slow: memory is allocated, kernels are chosen
ADAM_STATES = 2


@dataclass(frozen=True)
class DryRun:
    """What was found, as lines for a person, and what stands in the way."""

    findings: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.findings)
        lines = [f"{name:{width}}  {text}" for name, text in self.findings]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, "Nothing was kept." if self.problems else "All is well; nothing was kept."])


class Watch(Callback):
    """Keeps the metrics of each step."""

    def __init__(self) -> None:
        self.metrics: list[StepMetrics] = []

    def step(self, run, metrics: StepMetrics) -> None:
        self.metrics.append(metrics)


@dataclass(frozen=True)
class Trial:
    """Metrics of the last step, what was trained, and bytes: of a checkpoint (on the main process), of memory."""

    last: StepMetrics
    denoiser: nn.Module
    checkpoint: int
    peak: int


def try_out(config: FinetuningConfig, progress: bool = True) -> DryRun | None:
    """Check everything and make two steps; nothing is left but sizes of images in the cache of the data.

    Returns:
        The findings on the main process, None on the others.

    Raises:
        As [`finetune`], for what would stop a training before its first step or in it.
    """
    config.check()
    accelerator = make_accelerator(config.training)
    if accelerator.is_main_process:
        check_before(config)
    prepared = prepare(config, accelerator, progress)
    data, captions = describe_data(config, prepared), describe_captions(config, prepared)
    trial = make_steps(config, prepared, accelerator)
    if not accelerator.is_main_process:
        return None
    seconds = config.training.batch_size / trial.last.images_per_second
    needed, free, disk = describe_disk(config, trial.checkpoint, prepared)
    problems = []
    if needed > free:
        problems.append(f"checkpoints and result take {size(needed)}, and {size(free)} are free: free some space")
    if trial.last.bad_steps:
        problems.append("loss or gradient of the steps were not finite: see --mixed_precision and --learning_rate")
    step = f"{seconds:.3g} s, {trial.last.images_per_second:.3g} images/s, loss {trial.last.loss:.4g}"
    findings = (
        ("start", describe_start(prepared.start)),
        ("data", data),
        ("captions", captions),
        ("model", describe_model(trial.denoiser, prepared)),
        ("memory", describe_memory(trial.denoiser, config, accelerator, trial.peak)),
        ("step", step),
        ("full run", describe_length(config, prepared, seconds)),
        ("disk", disk),
        ("output", describe_output(config)),
    )
    return DryRun(findings, tuple(problems))


def make_steps(config: FinetuningConfig, prepared: Prepared, accelerator: Accelerator) -> Trial:
    """Train two steps in a folder beside the output folder, which is gone afterwards; called on every process."""
    beside, watch = nearest_folder(Path(config.training.output_dir)), Watch()
    with tempfile.TemporaryDirectory(dir=beside, prefix=".dry-run-") as scratch:
        training = dataclasses.replace(
            config.training,
            output_dir=Path(scratch, "run"),
            max_train_steps=STEPS,
            checkpointing_steps=STEPS,
            lr_warmup_steps=None,
        )
        reset_peak(accelerator.device)
        models, data = prepared.start.models, prepared.data
        trained = train(training, models, data, callbacks=(watch,), progress=False, accelerator=accelerator)
        checkpoint = newest_checkpoint_size(training.checkpoints_dir)
    return Trial(watch.metrics[-1], trained.denoiser, checkpoint, peak_memory(accelerator.device))


def describe_data(config: FinetuningConfig, prepared: Prepared) -> str:
    data, settled = prepared.data, prepared.data_config
    count = "a stream" if data.examples_per_epoch is None else f"{data.examples_per_epoch:,} images"
    sizes = f"{settled.resolution} x {settled.resolution} pixels"
    if isinstance(data, RecordSource) and settled.buckets:
        sizes = ", ".join(f"{width} x {height}: {n:,}" for (height, width), n in data.images_per_bucket().items() if n)
    lines = [f"{config.data.data}: {count}, {sizes}"]
    if data.holdout:
        lines.append(f"{len(data.holdout):,} more are held out for the validation loss")
    lines += [f"left out: {line}" for line in Skipped.of(data.findings()).lines()]
    enlarged = len(data.remarks)
    lines += (
        [f"{enlarged:,} are smaller than that and will be enlarged ({data.remarks[0][0]}, ...)"] if enlarged else []
    )
    return indented(lines)


def describe_captions(config: FinetuningConfig, prepared: Prepared) -> str:
    """How long the captions are to the text encoder."""
    models = prepared.start.models
    window = window_length(models.text_encoder, models.tokenizer)
    texts = itertools.islice(read_captions(prepared.data, config.training.batch_size), CAPTIONS_READ)
    if config.data.streaming:  # what was read is read again by the steps, which must begin where they would
        texts = itertools.islice(texts, config.training.batch_size)
    prefixed = [models.text_prefix + text for text in texts]
    lengths = [len(ids) for ids in models.tokenizer(prefixed, verbose=False).input_ids]
    long = sum(length > window for length in lengths)
    lines = [f"{median(lengths):.0f} tokens in the middle, {max(lengths):,} at most, of {len(lengths):,} looked at"]
    if long:
        lines.append(
            f"{long / len(lengths):.1%} are longer than the text encoder's window of {window}: read in several "
            "windows, nothing is cut off"
        )
    return indented(lines)


def describe_model(denoiser: nn.Module, prepared: Prepared) -> str:
    trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    parts = {name: count(network) for name, network in prepared.start.models.networks().items()}
    names = {"unet": "U-Net", "text_encoder": "text encoder", "vae": "VAE"}
    sizes = ", ".join(f"{names[name]} {millions(n)}" for name, n in parts.items())
    return f"parameters: {sizes}; {millions(trained)} of them are trained"


def describe_memory(denoiser: nn.Module, config: FinetuningConfig, accelerator: Accelerator, peak: int) -> str:
    weights = sum(x.nbytes for x in denoiser.parameters())
    trained = sum(x.numel() * 4 for x in denoiser.parameters() if x.requires_grad)
    parts = [f"weights {size(weights)}", f"gradients {size(trained)}"]
    if config.training.optimizer == "adamw":
        parts.append(f"optimizer {size(ADAM_STATES * trained)}")
    if config.training.ema_decay:
        parts.append(f"averages {size(trained)}{' (main memory)' if config.training.ema_on_cpu else ''}")
    highest = f"highest in a step: {size(peak)}"
    if accelerator.device.type == "cuda":
        highest += f" of {size(torch.cuda.get_device_properties(accelerator.device).total_memory)}"
    else:
        highest += ", Python and libraries included"
    return f"{', '.join(parts)}; {highest}"


def describe_length(config: FinetuningConfig, prepared: Prepared, seconds: float) -> str:
    training, examples = config.training, prepared.data.examples_per_epoch
    epochs = f", {training.max_train_steps * training.batch_size / examples:.3g} epochs" if examples else ""
    total = duration(training.max_train_steps * seconds)
    return f"{training.max_train_steps:,} steps{epochs}: about {total}, without validation"


def describe_disk(config: FinetuningConfig, checkpoint: int, prepared: Prepared) -> tuple[int, int, str]:
    """Bytes that are needed, bytes that are free, and both in words."""
    networks = prepared.start.models.networks().values()
    adapted = config.training.weights in ("lora", "state")
    result = 0 if adapted else sum(x.nbytes for network in networks for x in network.parameters())
    kept = config.training.checkpoints_to_keep + 1  # a new one is written before the oldest is deleted
    needed = kept * checkpoint + 2 * result  # likewise
    folder = nearest_folder(Path(config.training.output_dir))
    free = shutil.disk_usage(folder).free
    text = f"a checkpoint has {size(checkpoint)}, up to {kept} lie there at once; " + (
        "" if adapted else f"the pipeline has {size(result)}; "
    )
    return needed, free, f"{text}{size(free)} are free in {folder}"


def describe_output(config: FinetuningConfig) -> str:
    folder = Path(config.training.output_dir)
    if not holds_something(folder):
        return f"{folder} is free"
    return f"{folder} holds this run: it will go on"


def indented(lines: Sequence[str]) -> str:
    return "\n          ".join(lines)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def millions(n: int) -> str:
    return f"{n / 1e6:.3g} M"


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def newest_checkpoint_size(folder: Path) -> int:
    """Bytes; 0 if there is none, as on all processes but the main one."""
    newest = max(folder.glob("checkpoint-*"), default=folder)
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the accelerator's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
