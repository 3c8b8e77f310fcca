"""A small training run that tests of processes, signals and shards start, here or as `SCRIPT` in other processes.

python training_process.py '{"output_dir": ..., "max_train_steps": 6}' [folder for what each process reports]
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from unets import SMALL_UNET

from diffusers_crosswkv import DIR7UNet2DConditionModel
from diffusers_crosswkv.data.digits import Digits, all_captions, load_digits
from diffusers_crosswkv.training import Callback, Models, TrainingConfig, TrainingInterrupted, train
from diffusers_crosswkv.training.text import fit_tokenizer, make_text_encoder

SETTINGS = {"max_train_steps": 6, "batch_size": 4, "checkpointing_steps": 2, "lr_warmup_steps": 1}
SCRIPT = Path(__file__)


def tiny_models(seed=0, tokenizer=None, vae=None, **unet_config):
    torch.manual_seed(seed)
    tokenizer = tokenizer or fit_tokenizer(all_captions())
    return Models(
        DIR7UNet2DConditionModel(**{**SMALL_UNET, **unet_config}),
        make_text_encoder(tokenizer, SMALL_UNET["cross_attention_dim"], num_layers=1),
        tokenizer,
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        text_prefix="<|endoftext|>",
        vae=vae,
    )


def fifty_digits():
    everything = load_digits()
    return Digits(everything.images[:50], everything.labels[:50])


def tiny_config(folder, **values):
    return TrainingConfig(folder, **(SETTINGS | values))


class Losses(Callback):
    """Keeps the loss of every step; asks for a stop after one of them as Ctrl-C does."""

    def __init__(self, file=None, stop_after=None):
        self.values, self.file, self.stop_after = {}, file, stop_after

    def start(self, run):
        kind = type(run.denoiser.unet.conv_in.weight).__name__
        run.accelerator.print(f"training {kind} in {run.accelerator.num_processes} processes")

    def step(self, run, metrics):
        self.values[metrics.step] = metrics.loss
        if self.file is not None and run.accelerator.is_main_process:
            Path(self.file).write_text(json.dumps(self.values))
        if metrics.step == self.stop_after and run.accelerator.is_main_process:
            os.kill(os.getpid(), signal.SIGINT)


class Poison(Callback):
    """On the last process: after two steps an infinite loss with a finite gradient, after four one with NaN in it."""

    def step(self, run, metrics):
        if run.accelerator.process_index + 1 < run.accelerator.num_processes:
            return
        if metrics.step == 2:
            loss = run.loss

            def infinite(places):
                run.loss = loss
                return loss(places) + torch.inf

            run.loss = infinite
        if metrics.step == 4:
            weight = run.models.unet.conv_in.weight
            handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * torch.nan)[1])


def weights_of(models):
    return {
        f"{name}.{key}": x.detach().clone()
        for name in ("unet", "text_encoder")
        for key, x in getattr(models, name).named_parameters()
    }


def main():
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    losses = Losses(sys.argv[2] if len(sys.argv) > 2 else None, settings.pop("stop_after", None))
    callbacks = [losses, Poison()] if settings.pop("poisoned", False) else [losses]
    folder = settings.pop("output_dir")
    try:
        train(tiny_config(folder, **settings), tiny_models(), fifty_digits(), callbacks=callbacks, progress=False)
    except TrainingInterrupted as stopped:
        print(stopped)


if __name__ == "__main__":
    main()
