"""What to make: a model, an image, a run over prompts and seeds. All of it fits into JSON."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..pipelines.checks import check_unicode

MAX_SEED = 2**32 - 1
DTYPES = ("auto", "float32", "float16", "bfloat16")
PIPELINE_INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelConfig:
    """Which pipeline, and how it is loaded.

    Args:
        model: a pipeline's folder or its id on the Hub.
        revision: a branch, tag or commit of the Hub repository.
        variant: of the weight files, such as `fp16`.
        dtype: `float32`, `float16`, `bfloat16`; `auto` is float32 on a CPU and bfloat16 elsewhere.
        device: as torch writes it; `auto` is the accelerator if there is one.
        scheduler: the class to use in the place of the pipeline's own, "Scheduler" at its end may be left out.
        loras: files, folders or Hub ids of LoRA weights.
        lora_scales: their strengths, one per LoRA; all 1 if empty.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    scheduler: str | None = None
    loras: tuple[str, ...] = ()
    lora_scales: tuple[float, ...] = ()

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            FileNotFoundError: the model or a LoRA is written as a path and is not there.
            ValueError: another argument does not fit; the message says what would.
        """
        check_model_path(self.model)
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        for lora in self.loras:
            if looks_like_path(lora) and not Path(lora).exists():
                raise FileNotFoundError(f"There is no LoRA at {lora}.")
        if len(self.lora_scales) not in (0, len(self.loras)):
            raise ValueError(
                f"`lora_scales` must be one per LoRA or none, got {len(self.lora_scales)} for {len(self.loras)} LoRAs."
            )


@dataclass(frozen=True)
class ImageConfig:
    """One image. None means the pipeline's own default.

    Args:
        prompt: may be None if there is a prompt state, else it continues that state.
        seed: of the image's own generator, 0 to 2**32 - 1.
        negative_prompt: what guidance leads away from.
        num_inference_steps: denoising steps, >= 1.
        guidance_scale: classifier-free guidance.
        guidance_rescale: 0 to 1, see section 3.4 of arXiv:2305.08891.
        height, width: in pixels.
        prompt_state: path of a file that `PromptState.save` wrote.
        prompt_state_index: which of the file's states; None means all of them, one per prompt if there are prompts.
    """

    prompt: str | None = None
    seed: int = 0
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    height: int | None = None
    width: int | None = None
    prompt_state: str | None = None
    prompt_state_index: int | None = None

    def check(self) -> None:
        """Refuse what can be refused without the pipeline, which checks sizes by its own factor.

        Raises:
            FileNotFoundError: there is no such prompt state.
            ValueError: another argument does not fit; the message says what would.
        """
        if self.prompt is None and self.prompt_state is None:
            raise ValueError("There must be a prompt, a file of prompts or a prompt state, got none.")
        for name in ("prompt", "negative_prompt"):
            check_unicode(name, getattr(self, name) or "")
        if self.prompt_state is not None and not Path(self.prompt_state).is_file():
            raise FileNotFoundError(f"There is no prompt state at {self.prompt_state}; `PromptState.save` writes one.")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"Seeds must be 0 to {MAX_SEED}, got {self.seed}.")
        for name in ("num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"`guidance_scale` must be finite, got {self.guidance_scale}; 1 turns guidance off.")
        if self.guidance_rescale is not None and not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be 0 to 1, got {self.guidance_rescale}.")


@dataclass(frozen=True)
class RunConfig:
    """Images for every prompt and seed, and where they go.

    Args:
        model: the pipeline.
        prompts: one row of the contact sheet each; empty if prompt states take their place.
        image: what all images share; its seed is that of each prompt's first image, the next has the next seed.
        output_dir: made if it is not there; what else it holds stays.
        num_images_per_prompt: >= 1.
        overwrite: replace the files of an earlier run.
        grid: write a contact sheet; None means if there are several images.
        save_prompt_state: where to write the states of all prompts, as one file.
    """

    model: ModelConfig
    prompts: tuple[str, ...]
    image: ImageConfig
    output_dir: Path
    num_images_per_prompt: int = 1
    overwrite: bool = False
    grid: bool | None = None
    save_prompt_state: Path | None = None


def looks_like_path(name: str) -> bool:
    """Whether `name` cannot be a Hub id: `~/x`, `./x`, `/x`, `x/y/z`, `x\\y`, `x.safetensors`."""
    return name.startswith(("~", ".", "/")) or name.count("/") > 1 or "\\" in name or name.endswith(".safetensors")


def check_model_path(model: str) -> None:
    """Refuse a folder that is not there or holds no pipeline; say where one is, if it is near.

    Raises:
        FileNotFoundError: so.
        ValueError: `model` is neither a folder nor a possible Hub id.
    """
    folder = Path(model)
    if not folder.exists():
        if looks_like_path(model):
            raise FileNotFoundError(f"There is no folder {model}.")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise ValueError(f"`model` must be a pipeline's folder or a Hub id such as 'user/name', got {model!r}.")
    elif not (folder / PIPELINE_INDEX).is_file():
        near = sorted(path.parent for path in folder.glob(f"*/{PIPELINE_INDEX}")) if folder.is_dir() else []
        hint = f" There is one in {near[0]}." if near else " `pipeline.save_pretrained(folder)` writes one."
        raise FileNotFoundError(f"{model} is no pipeline's folder: it holds no {PIPELINE_INDEX}.{hint}")


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a UTF-8 text file, one per line; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 text, or holds no prompt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts at {path}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text with one prompt per line ({error}); save it as UTF-8.") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"{path} must hold one prompt per line, got none.")
    return prompts
