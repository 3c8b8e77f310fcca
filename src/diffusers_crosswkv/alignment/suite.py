"""All trainings of the alignment benchmark: which there are, and how to run them, one or several at a time."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from crosswkv_kernels import PRODUCTS
from tqdm.auto import tqdm
from transformers import CLIPTextModel

from ..environment import environment
from ..evaluation.kernel_rows import commit
from ..files import write_json
from .arms import MAIN_ARMS, STATE, Arm, Preset
from .capacity import as_row, measure_recall
from .runs import measure, row_path, train_arm
from .text_encoder import shared_text_encoder

TEXT_ENCODER, TEXT_ENCODER_SEED = "text encoder", 0
RANKS = ("decay_rank", "in_context_lr_rank", "gate_rank", "value_rank")
SMALL = Preset(
    resolution=16,
    patch=4,
    unet={
        "down_block_types": ["CrossAttnDownBlock2D"],
        "mid_block_type": None,
        "up_block_types": ["CrossAttnUpBlock2D"],
        "block_out_channels": [48],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    },
    crosswkv={"head_dim": 16} | dict.fromkeys(RANKS, 8),
    prefix={"value_dim": 24} | dict.fromkeys(RANKS, 4),
    text_width=64,
    text_layers=2,
    window=20,
    text_steps=1500,
    steps=1500,
    batch_size=64,
    optimizer="muon",
    learning_rate=5.7e-3,
    ema_decay=0.995,
    mixed_precision="no",
    seeds=(0, 1, 2),
    ablation_seeds=(0,),
    pictures=120,
    pictures_same=480,
    sampling_steps=20,
    guidance_scale=2.0,  # of 1.5 to 6 the best for softmax and `state`, two trainings each
    recall_steps=1500,
)
FULL = Preset(
    resolution=64,
    patch=2,
    unet={
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [64, 128, 192],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "attention_head_dim": 4,
    },
    crosswkv={"head_dim": 64} | dict.fromkeys(RANKS, 32),
    prefix={"value_dim": (32, 64, 96)} | dict.fromkeys(RANKS, 8),
    text_width=256,
    text_layers=4,
    window=77,
    text_steps=6000,
    steps=12_000,
    batch_size=128,
    optimizer="muon",
    learning_rate=1e-3,
    ema_decay=0.999,
    mixed_precision="bf16",
    seeds=(0, 1, 2),
    ablation_seeds=(0, 1, 2),
    pictures=1020,
    pictures_same=2048,
    sampling_steps=25,
    guidance_scale=3.0,
    recall_steps=1500,
)
SMOKE = dataclasses.replace(  # a few minutes: to see that everything runs; its figures mean nothing
    SMALL,
    text_steps=2,
    steps=2,
    batch_size=4,
    seeds=(0,),
    pictures=6,
    pictures_same=8,
    sampling_steps=2,
    recall_steps=2,
)
PRESETS = {"smoke": SMOKE, "small": SMALL, "full": FULL}


def ablations(preset: Preset) -> dict[str, Arm]:
    """What the paper's Table 2 leaves out, its LoRA ranks, its `<|endoftext|>` (4.4), and what `state` has instead."""
    ranks = [rank for rank in RANKS if rank != "gate_rank"]
    channels = {"head_dim": STATE["head_dim"] // PRODUCTS}  # of a head, which are its features without `quadratic`
    options: dict[str, dict[str, Any]] = {
        "no decay LoRA": {"decay_rank": 0},
        "no rate LoRA": {"in_context_lr_rank": 0},
        "no value LoRA": {"value_rank": 0},
        "no group norm": {"output_norm": False},
        "group norm of the paper": {"norm_eps": channels["head_dim"] * 1e-5},
        "gate of the paper": {"gate_rank": preset.crosswkv["gate_rank"]},
        "forward only": {"bidirectional": False},
        "SiLU": {"feature_map": "silu"} | channels,
        "no feature map": {"feature_map": "identity"} | channels,
        "ranks / 4": {rank: max(preset.crosswkv[rank] // 4, 1) for rank in ranks},
        "ranks x 2": {rank: preset.crosswkv[rank] * 2 for rank in ranks},
    }
    mains = (MAIN_ARMS[name] for name in ("softmax", "state", "paper"))
    return {f"state, {name}": Arm("state", STATE | changed) for name, changed in options.items()} | {
        f"{arm.fusion or 'softmax'}, no endoftext": dataclasses.replace(arm, prefix="") for arm in mains
    }


ARMS = MAIN_ARMS | ablations(SMALL)
RECALLS = {  # trainings of one layer without pictures: the layer and K = V
    "recall, softmax": ("softmax", 64),
    "recall, state": ("state", 64),
    "recall, state 32": ("state", 32),
    "recall, state 16": ("state", 16),
    "recall, state without feature map": ("state without feature map", 64),
}


def jobs_of(preset: Preset, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> list[tuple[str, int]]:
    """Arm and seed of every training: main arms first, all arms of a seed before the next seed.

    Raises:
        ValueError: a seed that the preset has not.
    """
    unknown = set(seeds or ()) - set(preset.seeds)
    if unknown:
        raise ValueError(f"`seeds` must be of {preset.seeds}, got {sorted(unknown)}.")
    main = [(name, seed) for seed in preset.seeds for name in MAIN_ARMS]
    rest = [(name, seed) for seed in preset.ablation_seeds for name in (*RECALLS, *ablations(preset))]
    return [(n, s) for n, s in main + rest if (arms is None or n in arms) and (seeds is None or s in seeds)]


def folder_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(', ', '-').replace(' / ', '-by-').replace(' ', '-')}-seed-{seed}"


def run_job(preset_name: str, folder: Path, name: str, seed: int, progress: bool = True) -> None:
    """Train one arm with one seed and measure it, or train the text encoder that all arms share.

    What is there already is not done again.
    """
    preset, own = PRESETS[preset_name], folder_of(folder, name, seed)
    if name == TEXT_ENCODER:
        text_encoder_of(preset, folder, progress)
        return
    claim(own, {"name": name, "seed": seed, "preset": dataclasses.asdict(preset), "arm": what_runs(name, preset)})
    if row_path(own, "training").exists():  # written last
        return
    if name in RECALLS:
        layer, head_dim = RECALLS[name]
        recalls = measure_recall(layer, head_dim, steps=preset.recall_steps, seed=seed, progress=progress)
        write_json(row_path(own, "training"), [as_row(recall) for recall in recalls])
        return
    arm = (MAIN_ARMS | ablations(preset))[name]
    text_encoder = text_encoder_of(preset, folder, progress)
    trained = train_arm(name, arm, preset, seed, text_encoder, own, progress)
    measure(trained, preset, own, progress)
    about = {
        "kind": "training",
        "arm": name,
        "seed": seed,
        "parameters": trained.models.num_parameters(),
        "trained_parameters": sum(p.numel() for p in trained.models.unet.parameters()),
        "steps": preset.steps,
        "batch_size": preset.batch_size,
        "seconds": round(trained.seconds, 1),
        **environment(trained.models.unet.device),
        "commit": commit(),
    }
    write_json(row_path(own, "training"), about)


def text_encoder_of(preset: Preset, folder: Path, progress: bool = True) -> CLIPTextModel:
    """The one that all arms share."""
    own = folder_of(folder, TEXT_ENCODER, TEXT_ENCODER_SEED)
    claim(own, {"name": TEXT_ENCODER, "preset": dataclasses.asdict(preset)})
    return shared_text_encoder(preset, own, progress)


def what_runs(name: str, preset: Preset) -> object:
    return RECALLS[name] if name in RECALLS else dataclasses.asdict((MAIN_ARMS | ablations(preset))[name])


def claim(folder: Path, setup: dict[str, object]) -> None:
    """Make `folder` that of one training, or find that it is.

    Raises:
        ValueError: it holds a training of another preset or arm.
    """
    path, setup = folder / "setup.json", json.loads(json.dumps(setup))
    if not path.exists():
        write_json(path, setup)
    elif json.loads(path.read_text(encoding="utf-8")) != setup:
        raise ValueError(f"{folder} holds a training with another setup, see {path}; use another output folder.")


def run_jobs(
    preset_name: str,
    folder: Path,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    at_a_time: int = 1,
) -> None:
    """All trainings that are asked for, `at_a_time` of them in parallel, each in a process of its own.

    Raises:
        ValueError: an unknown seed, nothing to run, or `at_a_time` below 1.
        RuntimeError: a training failed, and its log is named. Unless it is the text encoder's, others were finished.
    """
    if at_a_time < 1:
        raise ValueError(f"`at_a_time` must be at least 1, got {at_a_time}.")
    jobs = jobs_of(PRESETS[preset_name], arms, seeds)
    if not jobs:
        raise ValueError(
            f"There must be something to run, but {arms} with seeds {seeds} is no training of the preset."
        )
    if any(name not in RECALLS for name, _ in jobs):  # first, for all others wait for it
        job = (TEXT_ENCODER, TEXT_ENCODER_SEED)
        if run_in_process(preset_name, folder, *job) != 0:
            raise RuntimeError(f"The text encoder's training failed; see {folder_of(folder, *job) / 'log.txt'}.")
    failed = []
    with ThreadPoolExecutor(at_a_time) as pool, tqdm(total=len(jobs), desc="trainings", unit="training") as bar:
        waiting = {pool.submit(run_in_process, preset_name, folder, *job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                bar.update()
                if done.result() != 0:
                    failed.append(folder_of(folder, *waiting[done]) / "log.txt")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # the processes got the signal too, and save
            raise
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} trainings failed; see {', '.join(map(str, failed))}.")


def run_in_process(preset_name: str, folder: Path, name: str, seed: int) -> int:
    own = folder_of(folder, name, seed)
    own.mkdir(parents=True, exist_ok=True)
    with (own / "log.txt").open("a") as log:
        command = [sys.executable, "-m", __name__, preset_name, str(folder), name, str(seed)]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, preset_argument, folder_argument, name_argument, seed_argument = sys.argv
    run_job(preset_argument, Path(folder_argument), name_argument, int(seed_argument))
