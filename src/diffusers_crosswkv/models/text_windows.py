"""Texts of any length through a text encoder of limited length: in windows, cut between clauses where possible."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOWS_AT_ONCE = 64  # the text encoder's memory does not grow with a prompt's length beyond that
END_OF_WORD = "</w>"  # stays in what copies of a CLIP tokenizer decode, also after unloading a textual inversion
CLAUSE_ENDS = frozenset(".,;:!?。，；：！？、")


def encode_texts(
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    device: torch.device | None = None,
    clip_skip: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states `[B, L, D_q]` of `texts` and their mask `[B, L]` (1 = keep), on `device` or the text encoder's.

    A text that is longer than the encoder's window is encoded in windows one after the other, each with the special
    tokens of a text of its own, and their hidden states are joined. Nothing is cut off.

    `clip_skip` leaves out the last layers of a CLIP text encoder: 1 takes the hidden states before the last one.
    """
    windows = split_texts(text_encoder, tokenizer, texts)
    return encode_windows(text_encoder, tokenizer, windows, device, clip_skip)


def split_texts(
    text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[list[int]]]:
    """Per text the token ids of its windows."""
    limit = window_length(text_encoder, tokenizer)
    return [split_text(tokenizer, text, limit) for text in texts]


def encode_windows(
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: list[list[list[int]]],
    device: torch.device | None = None,
    clip_skip: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and mask as [`encode_texts`] gives them, of texts that have been split into windows."""
    flat = [torch.tensor(window) for of_text in windows for window in of_text]
    ids = pad_sequence(flat, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    mask = pad_sequence([torch.ones_like(window) for window in flat], batch_first=True)
    ids, mask = (x.to(device or text_encoder.device) for x in (ids, mask))
    batches = zip(ids.split(WINDOWS_AT_ONCE), mask.split(WINDOWS_AT_ONCE), strict=True)
    hidden = torch.cat([hidden_states(text_encoder, *batch, clip_skip) for batch in batches])
    if len(flat) == len(windows):
        return hidden, mask
    lengths = [sum(map(len, of_text)) for of_text in windows]
    joined = pad_sequence(hidden[mask.bool()].split(lengths), batch_first=True)
    places = torch.arange(joined.shape[1], device=joined.device)
    return joined, (places < torch.tensor(lengths, device=joined.device)[:, None]).long()


def hidden_states(
    text_encoder: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, clip_skip: int | None
) -> torch.Tensor:
    """What the encoder makes of token ids `[N, L]` and their mask: `[N, L, D_q]`.

    Raises:
        ValueError: `clip_skip` is asked of an encoder that is not CLIP's, or of more layers than it has.
    """
    if text_encoder.config.is_encoder_decoder and hasattr(text_encoder, "get_decoder"):
        text_encoder = text_encoder.get_encoder()
    if clip_skip is None:
        return text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    final_norm = final_layer_norm(text_encoder)
    layers = text_encoder.config.num_hidden_layers
    if final_norm is None or not 0 <= clip_skip < layers:
        raise ValueError(
            f"`clip_skip` must be from 0 to {layers - 1} and the text encoder CLIP's, got {clip_skip} and "
            f"{type(text_encoder).__name__}; leave it out to take the last hidden states."
        )
    outputs = text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return final_norm(outputs.hidden_states[-(clip_skip + 1)])


def final_layer_norm(text_encoder: PreTrainedModel) -> nn.Module | None:
    """Of a CLIP text encoder, whichever way the installed transformers builds it."""
    return getattr(getattr(text_encoder, "text_model", text_encoder), "final_layer_norm", None)


def window_length(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the encoder reads at once, special ones included: what it has positions for and was trained on.

    The tokenizer's limit counts where the encoder has none (T5) or needs some positions itself (RoBERTa's first two).
    """
    limit = getattr(text_encoder.config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, limit or tokenizer.model_max_length)


def split_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[list[int]]:
    """Token ids of the windows, special tokens included, `limit` at most each and one at least."""
    ids = tokenizer(text, verbose=False).input_ids  # no warning about its length: that is what this is for
    if len(ids) <= limit:
        return [ids or [stand_in(tokenizer)]]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    start, end = special_tokens(tokenizer)
    size = limit - len(start) - len(end)
    windows = []
    while ids:
        cut = cut_place(tokenizer, ids, size)
        windows.append([*start, *ids[:cut], *end])
        ids = ids[cut:]
    return windows


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    inside = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    before = next(i for i in range(len(whole)) if whole[i : i + len(inside)] == inside)
    return whole[:before], whole[before + len(inside) :]


def stand_in(tokenizer: PreTrainedTokenizerBase) -> int:
    """What an empty text is for a tokenizer without special tokens: an encoder must read something."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((i for i in ids if i is not None), 0)


def cut_place(tokenizer: PreTrainedTokenizerBase, ids: list[int], size: int) -> int:
    """How many of `ids` go into a window of `size`: up to the last end of a clause, unless most would stay empty."""
    if len(ids) <= size:
        return len(ids)
    for place in range(size, size // 4, -1):
        token = tokenizer.decode(ids[place - 1]).strip()
        if token.removesuffix(END_OF_WORD) in CLAUSE_ENDS:
            return place
    return size
