"""Stand-ins for the tiny text encoders that Diffusers' tests fetch from the Hub: with them the tests run offline.

They have the shapes of the originals and random weights, in the layout of the Hub's cache.
"""

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

REPOSITORIES = (
    "hf-internal-testing/tiny-random-clip",
    "peft-internal-testing/tiny-clip-text",
    "peft-internal-testing/tiny-clip-text-2",
)
REVISION = "0" * 40
START, END = "<|startoftext|>", "<|endoftext|>"


def write_stand_ins(cache: Path) -> None:
    """Fill `cache`, a folder for `HF_HUB_CACHE`."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), START, END]  # CLIP's bytes, the end token last
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=77)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=vocabulary.index(START),
        eos_token_id=vocabulary.index(END),
    )
    text_encoder = CLIPTextModelWithProjection(config)
    for repository in REPOSITORIES:
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / REVISION
        tokenizer.save_pretrained(snapshot)
        text_encoder.save_pretrained(snapshot)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(REVISION, encoding="utf-8")
