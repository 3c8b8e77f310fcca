"""Texts of any length through a text encoder of limited length: in windows, cut between clauses where possible."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLAUSE_ENDS = frozenset(".,;:!?。，；：！？、")


def encode_texts(
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states `[B, L, D_q]` of `texts` and their mask `[B, L]` (1 = keep), on `device` or the text encoder's.

    A text that is longer than the encoder's window (`max_position_embeddings`) is encoded in windows one after the
    other, each with the special tokens of a text of its own, and their hidden states are joined. Nothing is cut off.
    """
    limit = window_length(text_encoder, tokenizer)
    windows = [split_text(tokenizer, text, limit) for text in texts]
    flat = [window for of_text in windows for window in of_text]
    tokens = tokenizer.pad({"input_ids": flat}, return_tensors="pt", padding_side="right")
    ids, mask = (x.to(device or text_encoder.device) for x in (tokens.input_ids, tokens.attention_mask))
    hidden = text_encoder(ids, attention_mask=mask).last_hidden_state
    if len(flat) == len(texts):
        return hidden, mask
    lengths = [sum(map(len, of_text)) for of_text in windows]
    joined = pad_sequence(hidden[mask.bool()].split(lengths), batch_first=True)
    places = torch.arange(joined.shape[1], device=joined.device)
    return joined, (places < torch.tensor(lengths, device=joined.device)[:, None]).long()


def window_length(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the encoder reads at once, special ones included."""
    limit = getattr(text_encoder.config, "max_position_embeddings", None)
    return tokenizer.model_max_length if limit is None else limit


def split_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[list[int]]:
    """Token ids of the windows, special tokens included, `limit` at most each."""
    ids = tokenizer(text, verbose=False).input_ids  # no warning about its length: that is what this is for
    if len(ids) <= limit:
        return [ids]
    ids, special = tokenizer(text, add_special_tokens=False).input_ids, tokenizer("").input_ids
    start = [special[0]] if len(special) > 1 else []
    size = limit - len(special)
    windows = []
    while ids:
        cut = cut_place(tokenizer, ids, size)
        windows.append([*start, *ids[:cut], special[-1]])
        ids = ids[cut:]
    return windows


def cut_place(tokenizer: PreTrainedTokenizerBase, ids: list[int], size: int) -> int:
    """How many of `ids` go into a window of `size`: up to the last end of a clause, unless most would stay empty."""
    if len(ids) <= size:
        return len(ids)
    for place in range(size, size // 4, -1):
        if tokenizer.decode(ids[place - 1]).strip() in CLAUSE_ENDS:
            return place
    return size
