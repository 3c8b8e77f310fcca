"""What a training is told from outside: the model, the data, how it is watched, and where the result goes."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from ..data.config import DataConfig
from ..generation.config import check_model_path, looks_like_path, read_prompts
from ..presets import preset_names
from ..training import TrainingConfig

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
FUSIONS = ("state", "prefix", "paper")
NO_TRACKER = "none"


@dataclass(frozen=True)
class ModelSettings:
    """What training starts from.

    Args:
        model: a DIR-7 pipeline to train on, or a Stable Diffusion pipeline, which is converted: folder or Hub id.
        revision: branch, tag or commit of the Hub repository.
        variant: of the weight files, such as fp16; training itself is in float32 or mixed precision.
        from_scratch: a preset, such as dir7_s, whose untrained U-Net takes the place of `model`.
        vae: with `from_scratch`: the VAE's folder or Hub id, or that of a pipeline with one; without it the U-Net
            works on pixels.
        text_encoder: with `from_scratch`: folder or Hub id of CLIP, T5, ..., or of a pipeline with one; without it a
            small CLIP is made and trained, with a tokenizer fitted on the captions.
        fusion: of an untrained or converted U-Net: state, prefix or paper; state if not given.
        prediction_type: epsilon, v_prediction, sample or flow; the pipeline's own if not given, v_prediction from
            scratch.
        zero_terminal_snr: a noise schedule that ends in noise alone (arXiv:2305.08891).
        prepend_endoftext: put <|endoftext|> before every caption, as the paper does; if not given, as the pipeline
            does.
    """

    model: str | None = None
    revision: str | None = None
    variant: str | None = None
    from_scratch: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    fusion: str | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    prepend_endoftext: bool | None = None

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            FileNotFoundError: a path leads nowhere.
            ValueError: arguments that do not go together, or a value that does not exist; the message says what would.
        """
        if (self.model is None) == (self.from_scratch is None):
            raise ValueError(
                "Training must start from `--model` (a DIR-7 or Stable Diffusion pipeline) or `--from_scratch` (a "
                f"preset), one of them; got {'both' if self.model else 'neither'}."
            )
        if self.from_scratch is not None and self.from_scratch not in preset_names():
            raise ValueError(
                f"`from_scratch` must be one of the presets {', '.join(preset_names())}, got {self.from_scratch!r}."
            )
        if self.model is not None:
            check_model_path(self.model)
            for name in ("vae", "text_encoder"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`--{name}` goes with `--from_scratch`: the pipeline {self.model} has its own.")
        for name in ("vae", "text_encoder"):
            place = getattr(self, name)
            if place is not None and looks_like_path(place) and not Path(place).exists():
                raise FileNotFoundError(f"There is no `--{name}` at {place}.")
        for name, choices in (("fusion", (None, *FUSIONS)), ("prediction_type", (None, *PREDICTION_TYPES))):
            if getattr(self, name) not in choices:
                possible = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"`{name}` must be one of {possible}, got {getattr(self, name)!r}.")
        if self.zero_terminal_snr and self.prediction_type in ("epsilon", "flow"):
            raise ValueError(
                "`zero_terminal_snr` needs `prediction_type` v_prediction or sample: where there is noise alone, it "
                f"says nothing of the image; got {self.prediction_type}."
            )


@dataclass(frozen=True)
class ValidationSettings:
    """How a training is watched.

    Args:
        validation_prompts: drawn at the start and every `validation_steps`, each with the same noise every time.
        validation_prompts_file: UTF-8 text with one prompt per line, besides those.
        validation_steps: steps between two validations.
        num_validation_images: per prompt.
        validation_inference_steps: denoising steps of each image.
        validation_guidance_scale: of each image.
        validation_seed: of each prompt's first image, the next has the next seed.
        validation_examples: held out for a validation loss with the same noise and timesteps every time; a twentieth
            of the images, 32 at most, if not given; of a stream 32, or fewer if its first shard has fewer; 0 for none.
    """

    validation_prompts: tuple[str, ...] = ()
    validation_prompts_file: str | None = None
    validation_steps: int = 500
    num_validation_images: int = 4
    validation_inference_steps: int = 30
    validation_guidance_scale: float = 5.0
    validation_seed: int = 0
    validation_examples: int | None = None

    def check(self) -> None:
        """Raises ValueError for a number that cannot be, FileNotFoundError for a file of prompts that is not there."""
        self.prompts()
        for name in ("validation_steps", "num_validation_images", "validation_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.validation_examples is not None and self.validation_examples < 0:
            raise ValueError(f"`validation_examples` must be at least 0, got {self.validation_examples}.")

    def prompts(self) -> tuple[str, ...]:
        """Those given and those of the file.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or no prompt in it.
        """
        of_file = () if self.validation_prompts_file is None else read_prompts(Path(self.validation_prompts_file))
        return (*self.validation_prompts, *of_file)


@dataclass(frozen=True)
class RecordSettings:
    """What is written down.

    Args:
        report_to: trackers: tensorboard, wandb, and others that Accelerate knows; none for none. metrics.jsonl and
            loss.png are written in any case.
        run_name: of the run in its tracker; the output folder's name if not given.
        log_every: steps between two lines of metrics.jsonl and entries in the trackers.
        log_states_every: steps between two looks at the size and rank of all layers' states, which go to states.jsonl
            and the trackers; never if not given. One look costs a forward pass of the validation prompts.
        cache_latents: keep the VAE's latents and the text encoder's embeddings on disk (in `cache_dir`), for the next
            epoch and the next run; if not given, unless there is no end to them: random crops, streams.
    """

    report_to: tuple[str, ...] = ("tensorboard",)
    run_name: str | None = None
    log_every: int = 1
    log_states_every: int | None = None
    cache_latents: bool | None = None

    def check(self) -> None:
        """Raises ValueError for a number below 1, and `none` beside others."""
        for name in ("log_every", "log_states_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if NO_TRACKER in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"`report_to` must be trackers or {NO_TRACKER} alone, got {', '.join(self.report_to)}.")

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(name for name in dict.fromkeys(self.report_to) if name != NO_TRACKER)


@dataclass(frozen=True)
class HubSettings:
    """Publishing.

    Args:
        push_to_hub: publish the result when training is done; a finished training is only published.
        hub_model_id: user/name; the output folder's name in the namespace of the token if not given.
        hub_token: instead of HF_TOKEN or `hf auth login`.
        hub_private: make a new repository private.
        license: of the weights, as the Hub writes it: apache-2.0, creativeml-openrail-m, ...; unknown if not given.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = dataclasses.field(default=None, repr=False)
    hub_private: bool = False
    license: str | None = None

    def check(self) -> None:
        """Raises ValueError for a name that the Hub cannot have."""
        if self.hub_model_id is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.hub_model_id):
            raise ValueError(f"`hub_model_id` must be such as 'user/name', got {self.hub_model_id!r}.")


@dataclass(frozen=True)
class FinetuningConfig:
    """All settings of a training, in the groups of `--help`."""

    model: ModelSettings
    data: DataConfig
    training: TrainingConfig
    validation: ValidationSettings = ValidationSettings()
    records: RecordSettings = RecordSettings()
    hub: HubSettings = HubSettings()

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            FileNotFoundError, ValueError: a setting does not fit; the message says what would.
        """
        for settings in (self.model, self.validation, self.records, self.hub):
            settings.check()  # type: ignore[attr-defined]
        weights = self.training.weights
        if self.model.model is not None and self.training.train_text_encoder and weights != "all":
            raise ValueError(
                f"`train_text_encoder` needs `weights` all, got {weights}: the text encoder is not saved with it. "
                "Leave one of them out."
            )
