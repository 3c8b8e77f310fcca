"""Captions as what a frozen text encoder makes of them, cached on disk."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.text_windows import encode_windows, split_texts
from .tensor_cache import TensorCache, cache_key, digest_of

VERSION = 1  # of what is cached; to be raised when it changes
Windows = list[list[int]]  # a text's token ids, as the encoder reads them


class Prompts:
    """Captions to embeddings, for a text encoder that is not trained.

    With a cache each caption is encoded alone, so that its embeddings do not depend on the batch, and once. What is
    cached depends on the token ids that the encoder reads, which prefix, tokenizer and caption decide, and on the
    encoder's weights, dtype and settings.

    Args:
        text_prefix: put before every caption.
        caches: a folder that holds caches, or None.
    """

    def __init__(
        self,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_prefix: str = "",
        caches: str | os.PathLike | None = None,
    ):
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.text_prefix = tokenizer, text_prefix
        self.cache = None if caches is None else TensorCache(Path(caches, "prompts"))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `[B, L, D_q]` and their mask `[B, L]` (1 = keep), where the text encoder is.

        Raises:
            ValueError: the text encoder gives numbers that are not finite.
            OSError: the cache cannot be written.
        """
        different = list(dict.fromkeys(captions))
        texts = [self.text_prefix + caption for caption in different]
        windows = split_texts(self.text_encoder, self.tokenizer, texts)
        if self.cache is None:
            embeds, mask = self.encode_windows(windows)
        else:
            found = [self.cached(of_text) for of_text in windows]
            embeds = pad_sequence(found, batch_first=True)
            mask = pad_sequence([torch.ones_like(x[:, 0]) for x in found], batch_first=True).long()
        rows = [different.index(caption) for caption in captions]
        return embeds[rows], mask[rows]

    def cached(self, windows: Windows) -> torch.Tensor:
        """Embeddings `[L, D_q]` of one text."""
        assert self.cache is not None
        key = self.key(windows)
        found = self.cache.get(key)
        if found is None or "embeds" not in found:
            embeds, mask = self.encode_windows([windows])
            found = {"embeds": embeds[0, mask[0].bool()]}
            self.cache.put(key, found)
        return found["embeds"].to(self.text_encoder.device)

    def encode_windows(self, windows: list[Windows]) -> tuple[torch.Tensor, torch.Tensor]:
        """In the encoder's dtype, whatever autocast says."""
        self.text_encoder.eval()
        with torch.autocast(self.text_encoder.device.type, enabled=False):
            embeds, mask = encode_windows(self.text_encoder, self.tokenizer, windows)
        if not embeds[mask.bool()].isfinite().all():
            raise ValueError(
                f"The text encoder must give finite embeddings, but does not in {embeds.dtype}; load it in float32 "
                "or bfloat16."
            )
        return embeds, mask

    def key(self, windows: Windows) -> str:
        padding = self.tokenizer.pad_token_id
        return cache_key(kind="prompts", version=VERSION, tokens=windows, padding=padding, encoder=self.digest)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.text_encoder, self.text_encoder.config.to_dict())
