"""What is trained here: the quickstart's model with every fusion, and softmax beside them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from ..data.digits import all_captions, load_digits
from ..finetuning.records import MetricsFile
from ..finetuning.state_log import STATES_FILE, StateLog
from ..models import DIR7UNet2DConditionModel
from ..pipelines.prompt_encoding import ENDOFTEXT
from ..presets import load_preset
from ..quickstart import NOISE_SCHEDULE
from ..training import Models, TrainingConfig, train
from ..training.text import fit_tokenizer, make_text_encoder
from .prompt_sets import PROMPT_SETS

SOFTMAX = "softmax"
ARMS = ("state", SOFTMAX, "paper", "prefix")
LOOKED_AT = ("a handwritten seven", "数字三", "el dígito cinco", "une image du nombre 9")


@dataclass(frozen=True)
class Preset:
    """How much is trained and drawn.

    Args:
        train_steps: of every arm.
        look_every: steps of training between two looks at the states.
        prompt_sets: of `PROMPT_SETS`, those that are given.
        drawn: digits per prompt set and language, a multiple of 10.
        sampling_steps, guidance_scale: how they are drawn.
        lengths: of prompts, in tokens, whose states are looked at.
        seed: of everything.
    """

    train_steps: int = 3000
    look_every: int = 50
    prompt_sets: tuple[str, ...] = tuple(PROMPT_SETS)
    drawn: int = 50
    sampling_steps: int = 20
    guidance_scale: float = 2.0
    lengths: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096, 16384)
    seed: int = 0


PRESETS = {
    "default": Preset(),
    "smoke": Preset(  # to see that everything runs; its figures mean nothing
        train_steps=2,
        look_every=1,
        prompt_sets=("as in training", "long, digit last"),
        drawn=10,
        sampling_steps=2,
        lengths=(1, 100),
    ),
}


def build(arm: str, seed: int) -> Models:
    """The untrained models of an arm: `dir7_tiny` with a small text encoder, as in the quickstart.

    Softmax is the stock U-Net of the same config.
    """
    torch.manual_seed(seed)
    tokenizer = fit_tokenizer(all_captions())
    config = load_preset("dir7_tiny")
    if arm == SOFTMAX:
        stock = {name: value for name, value in config.items() if not name.startswith(("crosswkv_", "_"))}
        unet = UNet2DConditionModel(**stock)
    else:
        unet = DIR7UNet2DConditionModel.from_config(config, crosswkv_fusion=arm)
    encoder = make_text_encoder(tokenizer, config["cross_attention_dim"], num_layers=2)
    return Models(unet, encoder, tokenizer, DDPMScheduler(**NOISE_SCHEDULE), ENDOFTEXT)


def train_arm(arm: str, preset: Preset, folder: Path, progress: bool = True) -> Models:
    """Train, or go on, or load what is finished; the states of CrossWKV go to `folder/states.jsonl` meanwhile."""
    models = build(arm, preset.seed)
    config = TrainingConfig(folder / "training", preset.train_steps, checkpoints_to_keep=1, seed=preset.seed)
    watching = []
    if arm != SOFTMAX:
        watching = [StateLog(MetricsFile(folder / STATES_FILE), LOOKED_AT, preset.look_every)]
    try:
        return train(config, models, load_digits(), callbacks=watching, progress=progress).models
    finally:
        for log in watching:
            log.close()


def without_prefix(models: Models) -> Models:
    """The same models, to be given prompts alone."""
    return dataclasses.replace(models, text_prefix="")
