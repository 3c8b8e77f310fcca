"""One image in a process of its own, which does what a user's would and imports no more:

python -m diffusers_crosswkv.efficiency.pipeline_process '{"folder": ..., ...}'
"""

import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..evaluation.resident_memory import peak_resident

GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Order:
    """What a process is to draw; `has_states` tells DIR-7 from a stock pipeline."""

    folder: str
    prompt: str
    has_states: bool
    text_first: bool
    size: int
    steps: int
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Drawn:
    """What it tells afterwards: bytes, seconds, and the last latents, flat."""

    imported: int
    loaded: int
    peak: int
    until_step: tuple[float, ...]  # since the call began, with all encoding
    whole: float
    latents: tuple[float, ...]

    @property
    def step(self) -> float:
        """Seconds, the median."""
        return torch.tensor(self.until_step).diff().median().item()


def draw(order: Order) -> Drawn:
    """Load, encode, denoise, decode: one image."""
    imported, device = peak_resident(), torch.device(order.device)
    torch.set_num_threads(order.threads)
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    pipeline = DiffusionPipeline.from_pretrained(order.folder, dtype=getattr(torch, order.dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    loaded = peak_resident()
    times: list[float] = []
    latents: list[float] = []
    prompt: dict[str, Any] = {"prompt": order.prompt, "negative_prompt": ""}

    def look(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
        times.append(time.perf_counter() - start)
        latents[:] = tensors["latents"].float().flatten().tolist()
        return {}

    start = time.perf_counter()
    if order.text_first:
        prompt = encode_and_drop(pipeline, order.has_states, **prompt)
    pipeline(
        **prompt,
        height=order.size,
        width=order.size,
        num_inference_steps=order.steps,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator(device).manual_seed(0),
        callback_on_step_end=look,
    )
    whole = time.perf_counter() - start
    peak = peak_resident()
    if device.type != "cpu":
        peak = torch.get_device_module(device).max_memory_allocated(device)
    return Drawn(imported, loaded, peak, tuple(times), whole, tuple(latents))


@torch.no_grad()
def encode_and_drop(pipeline: Any, has_states: bool, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """What the pipeline takes in the place of the prompts; it has no text encoder afterwards."""
    encoded: dict[str, Any]
    if has_states:
        encoded = {
            "prompt_state": pipeline.encode_prompt_state(prompt),
            "negative_prompt_state": pipeline.encode_prompt_state(negative_prompt),
        }
    else:
        embeds = pipeline.encode_prompt(prompt, pipeline.device, 1, True, negative_prompt)
        encoded = dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeds, strict=True))
    pipeline.text_encoder = None
    gc.collect()
    return encoded


def in_fresh_process(order: Order) -> Drawn:
    """What a fresh interpreter says of `order`.

    Raises:
        RuntimeError: it failed, or was ended.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(order))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process ended with {done.returncode}: {last}")
    return Drawn(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(draw(Order(**json.loads(sys.argv[1]))))))
