"""A small CLIP text encoder and its tokenizer, made from scratch for data sets of our own.

The classes and files are those of a large checkpoint, so that everything else treats both alike.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

END_OF_WORD = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")


def fit_tokenizer(captions: Iterable[str], max_length: int = 77, min_frequency: int = 3) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form, fitted on `captions`: pairs seen `min_frequency` times are merged.

    Any text can be encoded: all 256 bytes are in the vocabulary, inside and at the end of a word.
    Equal captions give equal tokenizers, in any process.
    """
    clip = CLIPTokenizer()  # its normalizer and word splitting are used, its vocabulary is empty
    trained = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    trained.normalizer = clip.backend_tokenizer.normalizer
    trained.pre_tokenizer = clip.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [byte + END_OF_WORD for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=2**15,
        min_frequency=min_frequency,
        special_tokens=base,  # numbered before training, for pairs of equal counts are merged in the order of numbers
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    merges = merges_of(trained)
    tokens = list(dict.fromkeys([*base, *("".join(pair) for pair in merges), *SPECIAL_TOKENS]))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def make_text_encoder(tokenizer: CLIPTokenizer, hidden_size: int, num_layers: int) -> CLIPTextModel:
    """An untrained CLIPTextModel for `tokenizer`, with heads of 16 numbers and MLPs 4 times as wide as the rest."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=max(hidden_size // 16, 1),
        projection_dim=hidden_size,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
