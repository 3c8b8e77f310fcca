"""Everything that a training needs before its first step: the models and the data, made to fit each other."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ..data.built_in import DIGITS, SCENES, is_built_in, open_built_in
from ..data.config import DataConfig
from ..data.digits import all_captions
from ..data.loading import TrainingData, open_data
from ..data.scene_splits import captions_for_tokenizer
from ..data.size_index import default_cache_dir
from ..data.stream_source import StreamSource
from ..hub import FROM_SCRATCH
from .base_checks import check_kept
from .config import FinetuningConfig
from .models import PipelineBase, ScratchBase, Start

CAPTIONS_READ = 5_000  # for a tokenizer, or to see how long they are
MOST_HELD_OUT, HELD_OUT_SHARE = 32, 20
TENSOR_CACHE = "tensors"


@dataclass(frozen=True)
class Prepared:
    """Models, data, and what was settled between them.

    Args:
        data_config: with the resolution and the number of held-out examples filled in.
        caches: where latents and embeddings are kept, if they are.
    """

    start: Start
    data: TrainingData
    data_config: DataConfig
    caches: Path | None


def prepare(config: FinetuningConfig, accelerator: Accelerator, progress: bool = True) -> Prepared:
    """Load the models and open the data; the main process first, the others find it in the caches.

    Raises:
        OSError: something cannot be found or read.
        ValueError: model, data and settings do not fit each other; the message says what would.
    """
    with accelerator.main_process_first():
        base = make_base(config)
        check_weights(config, base)
        data_config = settle(config, base)
        progress = progress and accelerator.is_main_process

        def opened(settled: DataConfig = data_config) -> TrainingData:
            training = config.training
            return open_data(
                settled,
                training.batch_size,
                training.seed,
                base.channels,
                base.multiple,
                progress,
                training.max_bad_images,
            )

        if config.validation.validation_examples is None:
            held_out = held_out_of(opened())
            data_config = dataclasses.replace(data_config, holdout_examples=held_out)
        assert data_config.resolution is not None
        start = base.start(
            lambda: captions_of(data_config, opened(data_config), config.training.batch_size),
            data_config.resolution,
            config.training.seed,
        )
        check_text_encoder(config)
        return Prepared(start, opened(data_config), data_config, caches_of(config, start))


def make_base(config: FinetuningConfig) -> PipelineBase | ScratchBase:
    if config.model.model is not None:
        return PipelineBase(config.model, config.training.seed)
    return ScratchBase(config.model, channels=1 if config.data.data == DIGITS else 3)


def settle(config: FinetuningConfig, base: PipelineBase | ScratchBase) -> DataConfig:
    """The data's settings with what follows from the model."""
    data = config.data
    if data.resolution is None:
        own = open_built_in(data.data).resolution if is_built_in(data.data) else base.resolution
        if own is None:
            raise ValueError(
                f"`resolution` must be given: the U-Net of {config.model.model} has no `sample_size` to tell it."
            )
        data = dataclasses.replace(data, resolution=own)
    return dataclasses.replace(data, holdout_examples=config.validation.validation_examples or 0)


def held_out_of(data: TrainingData) -> int:
    """How many examples a validation loss may take from the training; a stream's must be in its first shard."""
    if not isinstance(data, StreamSource):
        return min(MOST_HELD_OUT, (data.examples_per_epoch or 0) // HELD_OUT_SHARE)
    first = sum(row.record is not None for row in data.shards.first_rows(MOST_HELD_OUT))
    if first == MOST_HELD_OUT:  # the shard may have more, and nobody has counted
        return first
    return min(first, first * data.shards.count // HELD_OUT_SHARE)


def captions_of(config: DataConfig, data: TrainingData, batch_size: int) -> list[str]:
    """Captions that stand for all: some thousands, in the order of training."""
    if config.data == DIGITS:
        return all_captions()
    if config.data.partition(":")[0] == SCENES:
        return list(captions_for_tokenizer())
    return list(itertools.islice(read_captions(data, batch_size), CAPTIONS_READ))


def read_captions(data: TrainingData, batch_size: int) -> Iterator[str]:
    """Those of one epoch, or without end; no image is decoded."""
    for number in itertools.count() if data.examples_per_epoch is None else range(data.examples_per_epoch):
        yield data.example(*divmod(number, batch_size)).caption


def check_weights(config: FinetuningConfig, base: PipelineBase | ScratchBase) -> None:
    """Refuse adapters and states for a U-Net that is saved nowhere, or for other images than its pipeline draws."""
    weights = config.training.weights
    if weights not in ("lora", "state"):
        return
    if isinstance(base, PipelineBase) and not base.converted:
        check_kept(config.model, base.pipeline, weights)
        return
    made = f"{config.model.model} would be converted" if config.model.model else "an untrained U-Net would be made"
    raise ValueError(
        f"--weights {weights} needs a DIR-7 pipeline: {made} first, and what is trained would fit no saved model. "
        "Train it with --weights attn2 or all first, then give that result's pipeline to --model with "
        f"--weights {weights}."
    )


def check_text_encoder(config: FinetuningConfig) -> None:
    """Refuse a text encoder that nobody has trained and nobody will."""
    made = config.model.from_scratch is not None and config.model.text_encoder is None
    if made and not (config.training.train_text_encoder and config.training.weights == "all"):
        raise ValueError(
            "A new text encoder must be trained: say --train_text_encoder --weights all, or give one that has learned "
            f"something by --text_encoder; got --weights {config.training.weights}"
            f"{'' if config.training.train_text_encoder else ' --no-train_text_encoder'}."
        )


def caches_of(config: FinetuningConfig, start: Start) -> Path | None:
    """Where latents and embeddings are kept, unless there would be no end to them or there are none."""
    endless = config.data.crop == "random" or config.data.streaming or start.models.vae is None
    wanted = not endless if config.records.cache_latents is None else config.records.cache_latents
    return Path(config.data.cache_dir or default_cache_dir()) / TENSOR_CACHE if wanted else None


def describe_start(start: Start) -> str:
    """Where training starts, as a line for a person."""
    if start.base_model == FROM_SCRATCH:
        return "starting from untrained weights"
    if start.converted:
        return (
            f"{start.base_model} has softmax cross-attention: converted to {start.models.unet.config.crosswkv_fusion} "
            "fusion. It draws nothing useful until it has been trained."
        )
    return f"starting from {start.base_model}"
