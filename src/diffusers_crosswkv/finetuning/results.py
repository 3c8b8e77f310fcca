"""What a finished training leaves for use: a pipeline, a LoRA or a prompt state, and how to use it."""

import dataclasses
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..pipelines import DIR7Pipeline
from ..pipelines.saving import save_whole
from ..training import TrainingResult
from ..training.denoiser import initial_prompt_state, lora_layers
from .models import Start, resolution_of

PIPELINE_DIR = "pipeline"
LORA_FILE = "pytorch_lora_weights.safetensors"
STATE_FILE = "prompt_state.safetensors"


@dataclass(frozen=True)
class SavedResult:
    """Where the result is, and a command that draws with it."""

    path: Path
    example: str


def result_path(output_dir: Path, weights: str) -> Path:
    """Where training of `weights` leaves its result."""
    return output_dir / {"lora": LORA_FILE, "state": STATE_FILE}.get(weights, PIPELINE_DIR)


def save_result(start: Start, trained: TrainingResult, weights: str, output_dir: Path, prompt: str) -> SavedResult:
    """Write what was trained, whole or not at all; on the main process alone, of a denoiser that is not sharded."""
    path = result_path(output_dir, weights)
    resized = resolution_of(start.pipeline()) != start.resolution  # training was on images of another size
    if weights == "lora":
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".lora.") as folder:
            DIR7Pipeline.save_lora_weights(folder, unet_lora_layers=lora_layers(trained.denoiser))
            Path(folder, LORA_FILE).replace(path)
    elif weights == "state":
        initial_prompt_state(trained.denoiser).save(path)
    else:
        pipeline = dataclasses.replace(start, models=trained.models).pipeline()
        if resized:
            pipeline.unet.register_to_config(sample_size=start.resolution // pipeline.vae_scale_factor)
        save_whole(pipeline, path)
    return SavedResult(path, example(start, path, weights, prompt, resized))


def example(start: Start, path: Path, weights: str, prompt: str, resized: bool) -> str:
    """A command that draws with the result, in the size of training."""
    size = ["--height", start.resolution, "--width", start.resolution] if resized else []
    model = {
        "lora": ["--model", start.base_model, "--lora", path, *size],
        "state": ["--model", start.base_model, "--prompt-state", path, *size],
    }
    return shlex.join(map(str, ["python", "scripts/generate.py", *model.get(weights, ["--model", path]), prompt]))
