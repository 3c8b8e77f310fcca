import pytest
import torch

from diffusers_crosswkv.data.digits import all_captions
from diffusers_crosswkv.models.text_windows import encode_texts, split_text
from diffusers_crosswkv.training.text import fit_tokenizer, make_text_encoder


@pytest.fixture(scope="module")
def short_tokenizer():
    return fit_tokenizer(all_captions(), max_length=10)


@pytest.fixture
def text_encoder(short_tokenizer):
    return make_text_encoder(short_tokenizer, 16, num_layers=1).eval()


LONG = "a handwritten seven, the digit two, a picture of the number three, handwriting: one, the digit nine"


def test_a_text_that_fits_is_one_window(short_tokenizer, text_encoder):
    texts = ["the digit two", "a handwritten seven"]
    tokens = short_tokenizer(texts, padding="longest", return_tensors="pt")
    hidden, mask = encode_texts(text_encoder, short_tokenizer, texts)
    assert torch.equal(hidden, text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state)
    assert torch.equal(mask, tokens.attention_mask)


def test_windows_hold_the_whole_text_and_end_at_clauses(short_tokenizer):
    windows = split_text(short_tokenizer, LONG, 10)
    first, last = short_tokenizer("").input_ids
    assert all(window[0] == first and window[-1] == last and len(window) <= 10 for window in windows)
    joined = [token for window in windows for token in window[1:-1]]
    assert joined == short_tokenizer(LONG, add_special_tokens=False).input_ids
    assert all(short_tokenizer.decode(window[-2]).strip() == "," for window in windows[:-1])


def test_a_text_without_clauses_is_cut_where_the_window_ends(short_tokenizer):
    windows = split_text(short_tokenizer, "seven " * 20, 10)
    assert [len(window) for window in windows] == [10, 10, 6]


def test_windows_are_encoded_one_by_one(short_tokenizer, text_encoder):
    texts = ["the digit two", LONG, ""]
    hidden, mask = encode_texts(text_encoder, short_tokenizer, texts)
    assert hidden.shape[:2] == mask.shape
    for i, text in enumerate(texts):
        windows = split_text(short_tokenizer, text, 10)
        expected = torch.cat([text_encoder(torch.tensor([w])).last_hidden_state[0] for w in windows])
        assert mask[i].tolist() == [1] * len(expected) + [0] * (mask.shape[1] - len(expected))
        torch.testing.assert_close(hidden[i, : len(expected)], expected)


def test_gradients_reach_the_encoder_through_windows(short_tokenizer, text_encoder):
    hidden, _ = encode_texts(text_encoder, short_tokenizer, [LONG, "two"])
    hidden.sum().backward()
    assert all(p.grad is not None for p in text_encoder.parameters())
