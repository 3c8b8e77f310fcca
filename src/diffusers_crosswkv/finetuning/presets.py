"""Settings that go together: what is taken where nothing is said, and the presets that a person can name."""

import os
from collections.abc import Mapping
from typing import Any

import torch

# Of a person with a pipeline and a folder of images. `TrainingConfig` itself has those of small models from scratch.
DEFAULTS: dict[str, Any] = {
    "max_train_steps": 5_000,
    "batch_size": 16,
    "learning_rate": 1e-5,
    "ema_decay": 0.999,
    "checkpointing_steps": 500,
}
# What little is trained wants larger steps; few images want fewer of them. States are sums over a text's tokens, far
# larger than weights: on digits 0.3 did better than 0.03, and 0.003 learned next to nothing.
BY_WEIGHTS: dict[str, dict[str, Any]] = {
    "all": {},
    "attn2": {"learning_rate": 1e-4},
    "lora": {"learning_rate": 1e-4, "max_train_steps": 1_500, "batch_size": 4, "ema_decay": 0.99},
    "state": {"learning_rate": 0.1, "max_train_steps": 1_500, "batch_size": 4, "ema_decay": 0.99},
}
FROM_SCRATCH = {"learning_rate": 1e-4, "max_train_steps": 100_000, "batch_size": 64, "ema_decay": 0.9999}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # section 5 of the paper: AdamW, 1e-4, batch 256, 100,000 steps
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "batch_size": 256,
        "max_train_steps": 100_000,
        "prediction_type": "epsilon",
        "prepend_endoftext": True,
    },
    "attn2": {"weights": "attn2"},
    "lora": {"weights": "lora"},
    "state": {"weights": "state"},
    "laptop": {  # as little memory as there is: one image at a time, activations computed twice
        "weights": "lora",
        "batch_size": 4,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "ema_decay": 0.0,
    },
    "tiny": {  # a model of half a million parameters from scratch, on a CPU, in minutes
        "from_scratch": "dir7_tiny",
        "learning_rate": 2e-3,
        "batch_size": 32,
        "max_train_steps": 1_500,
        "ema_decay": 0.99,
        "checkpointing_steps": 200,
        "validation_guidance_scale": 2.0,
    },
}


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where nothing is said, which depends on what is: on `weights`, `from_scratch`, `optimizer`."""
    values = {**DEFAULTS, "mixed_precision": default_precision()}
    # a text encoder that has learned something stays as it is unless asked for; a new one must learn
    values["train_text_encoder"] = bool(given.get("from_scratch")) and given.get("text_encoder") is None
    values |= FROM_SCRATCH if given.get("from_scratch") else BY_WEIGHTS.get(given.get("weights", "all"), {})
    if given.get("optimizer") == "prodigy":
        values["learning_rate"] = 1.0  # it finds its own; this is a factor
    return values


def default_precision() -> str:
    """What `accelerate launch` was told; else bfloat16 where the accelerator computes in it, which cannot overflow."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if launched in ("no", "bf16", "fp16"):
        return launched
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
