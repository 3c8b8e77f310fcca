import copy

import pytest
import torch

from diffusers_crosswkv.data.digits import all_captions
from diffusers_crosswkv.models import text_windows
from diffusers_crosswkv.models.text_windows import encode_texts
from diffusers_crosswkv.training.prompts import Prompts
from diffusers_crosswkv.training.text import fit_tokenizer, make_text_encoder

CAPTIONS = ["a handwritten three", "", "four", "a handwritten three", "un dos tres " * 50]


@pytest.fixture
def text_encoder(tokenizer):
    return make_text_encoder(tokenizer, 24, num_layers=1).eval()


@pytest.fixture
def encoded(monkeypatch):
    """How many windows the text encoder has read."""
    counts = []
    original = text_windows.hidden_states

    def count(encoder, ids, mask, clip_skip):
        counts.append(len(ids))
        return original(encoder, ids, mask, clip_skip)

    monkeypatch.setattr(text_windows, "hidden_states", count)
    return counts


@pytest.mark.parametrize("cached", [False, True])
def test_embeddings_are_those_of_the_text_encoder(text_encoder, tokenizer, tmp_path, cached):
    prompts = Prompts(text_encoder, tokenizer, "two ", tmp_path if cached else None)
    embeds, mask = prompts.encode(CAPTIONS)
    with torch.no_grad():
        expected, expected_mask = encode_texts(text_encoder, tokenizer, ["two " + text for text in CAPTIONS])
    assert torch.equal(mask, expected_mask) and mask.dtype == expected_mask.dtype
    torch.testing.assert_close(embeds[mask.bool()], expected[mask.bool()])
    assert not embeds.requires_grad
    assert mask[4].sum() > 77 and mask[1].sum() >= 2


def test_a_caption_is_encoded_once(text_encoder, tokenizer, tmp_path, encoded):
    Prompts(text_encoder, tokenizer).encode(["four"] * 5 + ["three"])
    assert encoded == [2]
    encoded.clear()
    first = Prompts(text_encoder, tokenizer, "", tmp_path).encode(CAPTIONS[:4])
    assert encoded == [1, 1, 1]
    again = Prompts(text_encoder, tokenizer, "", tmp_path)
    found = again.encode(CAPTIONS[:4])
    assert torch.equal(found[0], first[0]) and torch.equal(found[1], first[1])
    alone, _ = again.encode(["four"])
    assert torch.equal(alone[0], first[0][2, : alone.shape[1]])
    assert encoded == [1, 1, 1]


def test_what_changes_embeddings_changes_the_key(text_encoder, tokenizer, tmp_path, encoded):
    """Weights, settings and dtype of the encoder, tokenizer, prefix and caption: none finds what another has left."""
    moved, half, other = (copy.deepcopy(text_encoder) for _ in range(3))
    next(moved.parameters()).data[0] += 1e-3
    half.to(torch.bfloat16)
    other.config.hidden_act = "gelu"
    short = fit_tokenizer(all_captions(), max_length=12)
    merged_less = fit_tokenizer(all_captions(), min_frequency=10**6)
    long = "a handwritten three, and a handwritten four, and a handwritten five"
    Prompts(text_encoder, tokenizer, "", tmp_path).encode([long])
    for arguments, caption in (
        ((moved, tokenizer, ""), long),
        ((half, tokenizer, ""), long),
        ((other, tokenizer, ""), long),
        ((text_encoder, short, ""), long),
        ((text_encoder, merged_less, ""), long),
        ((text_encoder, tokenizer, "two "), long),
        ((text_encoder, tokenizer, ""), long + "."),
    ):
        encoded.clear()
        Prompts(*arguments, tmp_path).encode([caption])
        assert len(encoded) == 1, arguments[1:]
    encoded.clear()
    Prompts(copy.deepcopy(text_encoder), tokenizer, "", tmp_path).encode([long])
    assert not encoded


def test_a_damaged_entry_is_computed_again(text_encoder, tokenizer, tmp_path, encoded):
    prompts = Prompts(text_encoder, tokenizer, "", tmp_path)
    first, _ = prompts.encode(["four"])
    (path,) = (tmp_path / "prompts").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(prompts.encode(["four"])[0], first) and encoded == [1, 1]
    prompts.encode(["four"])
    assert encoded == [1, 1]


def test_autocast_stays_outside(text_encoder, tokenizer):
    prompts = Prompts(text_encoder, tokenizer)
    plain, _ = prompts.encode(["four"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prompts.encode(["four"])[0], plain)


def test_an_encoder_that_overflows_is_named_and_nothing_is_kept(text_encoder, tokenizer, tmp_path):
    text_encoder.final_layer_norm.bias.data[0] = float("nan")
    prompts = Prompts(text_encoder, tokenizer, "", tmp_path)
    with pytest.raises(ValueError, match=r"finite embeddings, but does not in torch\.float32"):
        prompts.encode(["four"])
    assert prompts.cache.size().entries == 0
