"""What a training step of a whole U-Net costs: CrossWKV in `state` fusion beside softmax cross-attention."""

import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from ..host_memory import freed_memory_kept
from ..models import PromptState
from ..presets import load_preset
from .kernel_benchmark import DTYPES, SECONDS, BenchmarkConfig, failure, significant
from .kernel_rows import Row, RowFile, about
from .kernel_timing import Stopwatch, summarize, take_turns
from .prompt_length import SOFTMAX, UNets
from .resident_memory import peak_resident

STATE = "state"
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0
WARM_UP_STEPS = 2  # the first makes the optimizer's state, the second is what all others are like
PEAK_BY = {
    "cpu": "peak resident set of a process of its own, all that it has imported included",
    "cuda": "torch.cuda.max_memory_allocated, weights and optimizer included",
    "xpu": "torch.xpu.max_memory_allocated, weights and optimizer included",
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        trained: `all` of the U-Net, `attn2` (cross-attention alone), or `state`: a learned prompt state that a frozen
            U-Net reads, which softmax has no counterpart for.
        dtype: of autocast; weights are float32.
        captions: prompts of 8 to 24 tokens, as most data sets have them; the rest of L is masked.
        latents_per_side: of the images; the preset's if None.
    """

    preset: str
    batch_size: int
    text_tokens: int
    trained: str = "all"
    checkpointing: bool = False
    compiled: bool = False
    dtype: str = "float32"
    captions: bool = False
    latents_per_side: int | None = None

    @property
    def sides(self) -> tuple[str, ...]:
        return (STATE,) if self.trained == STATE else (SOFTMAX, STATE)

    @property
    def how(self) -> str:
        extras = (
            ("gradient checkpointing", self.checkpointing),
            ("torch.compile", self.compiled),
            ("prompts of 8 to 24 tokens", self.captions),
        )
        return ", ".join([self.trained, *(name for name, on in extras if on)])


def cases(device: str, quick: bool) -> list[Case]:
    if quick:
        tiny = Case("dir7_tiny", 2, 16)
        return [tiny, replace(tiny, trained="attn2", checkpointing=True), replace(tiny, trained=STATE)]
    tiny = Case("dir7_tiny", 32, 77)
    if device == "cpu":
        small = Case("dir7_s", 4, 77)
        dtypes = ["float32"]
    else:
        small = Case("dir7_s", 64, 77)
        dtypes = ["float32", "bfloat16"]
    large = replace(small, batch_size=small.batch_size // 4, latents_per_side=64)  # Stable Diffusion's 512 pixels
    found = []
    for dtype in dtypes:
        found += [replace(case, text_tokens=n, dtype=dtype) for n in (77, 512) for case in (small, large)]
        found.append(replace(small, dtype=dtype, captions=True))
        found += [replace(small, text_tokens=length, checkpointing=True, dtype=dtype) for length in (77, 512)]
        found += [replace(case, text_tokens=2048, dtype=dtype) for case in (small, large)]
    found += [replace(tiny, text_tokens=length) for length in (77, 512)]
    found += [replace(small, trained="attn2", dtype=dtypes[-1]), replace(small, trained=STATE, dtype=dtypes[-1])]
    compiled = tiny if device == "cpu" else replace(small, dtype=dtypes[-1])
    return [*found, replace(compiled, compiled=True)]


class Trainer:
    """One side of a case; calling it is a step: noise, forward, backward, clipping, AdamW. The text is frozen."""

    def __init__(self, case: Case, side: str, device: torch.device):
        unets = UNets.make(case.preset, device, torch.float32)
        self.unet = unets.crosswkv if side == STATE else unets.softmax
        self.unet.train()
        config, batch_size = self.unet.config, case.batch_size
        generator = torch.Generator(device).manual_seed(0)
        shape = (batch_size, config.in_channels, side_of(case), side_of(case))
        self.images = torch.randn(shape, generator=generator, device=device)
        text_shape = (batch_size, case.text_tokens, config.cross_attention_dim)
        text = torch.randn(text_shape, generator=generator, device=device)
        self.arguments = {"encoder_hidden_states": text, "encoder_attention_mask": mask_of(case, device)}
        self.learned: PromptState | None = None
        if case.trained == STATE:
            self.learned = self.unet.encode_prompt(text[:1])
            self.parameters = [x.requires_grad_() for x in self.learned.states]
        else:
            self.parameters = trained_parameters(self.unet, case.trained)
            for parameter in self.parameters:
                parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=device.type in ("cpu", "cuda"))
        if case.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if case.compiled:
            self.unet.compile()
        self.scheduler = DDPMScheduler()
        dtype = DTYPES[case.dtype]
        self.autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)

    def __call__(self) -> None:
        arguments: dict[str, Any] = self.arguments
        if self.learned is not None:  # one for all samples
            prompt_state = self.learned[[0] * len(self.images)]
            arguments = {"encoder_hidden_states": None, "cross_attention_kwargs": {"prompt_state": prompt_state}}
        noise = torch.randn_like(self.images)
        timesteps = torch.randint(len(self.scheduler.betas), (len(noise),), device=noise.device)
        with self.autocast:
            noisy = self.scheduler.add_noise(self.images, noise, timesteps)
            prediction = self.unet(noisy, timesteps, **arguments).sample
            loss = nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def trained_parameters(unet: UNet2DConditionModel, trained: str) -> list[torch.Tensor]:
    if trained == "all":
        return list(unet.parameters())
    attentions = [x for x in unet.modules() if isinstance(x, Attention) and x.is_cross_attention]
    return [parameter for attention in attentions for parameter in attention.parameters()]


def mask_of(case: Case, device: torch.device) -> torch.Tensor:
    """`[B, L]`, 1 = keep: the first prompt fills its length, the last a little more than half of it; or captions."""
    longest, shortest = (24, 8) if case.captions else (case.text_tokens, case.text_tokens // 2)
    kept = longest - torch.arange(case.batch_size) * (longest - shortest) // case.batch_size
    return (torch.arange(case.text_tokens) < kept[:, None]).to(device)


def measure(config: BenchmarkConfig, progress: Callable[[str], object] = print) -> list[Row]:
    """Measure and write the rows of this machine, `config.rows_path`, case by case; rows of others there are kept.

    The sides of a case take turns, step by step.
    """
    device, file = config.torch_device, RowFile(config.rows_path)
    chosen = [case for case in cases(device.type, config.quick) if config.dtype in (None, case.dtype)]
    seconds = (config.seconds or SECONDS[device.type]) / len(chosen)
    rows: list[Row] = []
    for case in chosen:
        progress(f"{case.preset}, {case.text_tokens} text tokens, {case.how}, {case.dtype}")
        this_run = about(device, DTYPES[case.dtype]) | {"rounds": config.rounds, "load_average": load_average()}
        try:
            measured = rows_of(case, device, config.rounds, seconds)
        except Exception as error:  # compilers fail in many ways, and memory ends: the other cases can still run
            measured = {side: failure(error) for side in case.sides}
        new = [this_run | shape_of(case) | {"implementation": side} | row for side, row in measured.items()]
        file.put(new)
        rows += new
    return rows


def rows_of(case: Case, device: torch.device, rounds: int, seconds: float) -> dict[str, Row]:
    peaks, trainers = {}, {}
    for side in case.sides:
        if device.type == "cpu":
            peaks[side] = peak_of_process(case, side)
        before = 0 if device.type == "cpu" else torch.get_device_module(device).memory_allocated(device)
        trainers[side] = Trainer(case, side, device)
        for _ in range(WARM_UP_STEPS):
            trainers[side]()
        if device.type != "cpu":
            peaks[side] = peak_of_step(trainers[side], device) - before
    stopwatch = Stopwatch(device)
    with freed_memory_kept(device):  # as in training
        times = take_turns(trainers, stopwatch, rounds, seconds / len(trainers))
    rows: dict[str, Row] = {}
    for side, of in times.items():
        timing = summarize(of)
        row = {key: significant(value) for key, value in timing._asdict().items()}
        row["images_per_second"] = significant(1e3 * case.batch_size / timing.median_ms)
        rows[side] = row | {"peak_bytes": peaks[side], "peak_bytes_by": PEAK_BY[device.type]}
    if SOFTMAX in times:
        rows[STATE] |= relative_speed(times[SOFTMAX], times[STATE])
    return rows


def relative_speed(softmax: list[float], state: list[float]) -> Row:
    """Images per second of `state` over those of softmax, round by round: median and quartiles."""
    ratios = [x / y for x, y in zip(softmax, state, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"speed": significant(median), "speed_q25": significant(low), "speed_q75": significant(high)}


def peak_of_step(trainer: Trainer, device: torch.device) -> int:
    module = torch.get_device_module(device)
    module.reset_peak_memory_stats(device)
    trainer()
    module.synchronize(device)
    return module.max_memory_allocated(device)


def peak_of_process(case: Case, side: str) -> int:
    """Of a process that takes the steps of a warm-up; it starts with everything imported and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context) as processes:
        return processes.submit(peak_here, case, side, torch.get_num_threads()).result()


def peak_here(case: Case, side: str, threads: int) -> int:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    trainer = Trainer(case, side, device)
    with freed_memory_kept(device):
        for _ in range(WARM_UP_STEPS):
            trainer()
    return peak_resident()


def load_average() -> float:
    """Of the last minute: how many processes wanted this machine's cores."""
    return significant(os.getloadavg()[0])


def shape_of(case: Case) -> Row:
    """The names are those of the kernel benchmark's rows."""
    about_case = asdict(case)
    settings = {name: about_case[name] for name in ("trained", "checkpointing", "compiled", "captions")}
    return settings | {
        "kind": case.preset,
        "direction": case.how,
        "batch": case.batch_size,
        "width": None,
        "tokens": side_of(case) ** 2,
        "text_tokens": case.text_tokens,
    }


def side_of(case: Case) -> int:
    """Latents per side of an image."""
    return case.latents_per_side or load_preset(case.preset)["sample_size"]
