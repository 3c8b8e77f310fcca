import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_crosswkv.data.digits import all_captions
from diffusers_crosswkv.training.text import fit_tokenizer, make_text_encoder

TOKENIZER = fit_tokenizer(all_captions())


@given(st.text(max_size=20))
def test_any_text_can_be_encoded(text):
    ids = TOKENIZER(text).input_ids
    assert (ids[0], ids[-1]) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert max(ids) < len(TOKENIZER)


def test_text_comes_back(tokenizer):
    for text in ("a handwritten seven", "un dígito 9", "手写的数字七", "naïve Größe"):
        decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip()
        assert decoded == text.lower()


def test_fitting_shortens_captions(tokenizer):
    assert max(len(ids) for ids in tokenizer(all_captions()).input_ids) <= 10
    assert len(tokenizer("xylophone quartz").input_ids) > 10


def test_endoftext_in_front_is_one_token(tokenizer):
    ids = tokenizer("<|endoftext|>a seven").input_ids
    assert ids[:2] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder = make_text_encoder(tokenizer, 32, num_layers=1).eval()
    encoder.save_pretrained(tmp_path / "text_encoder")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(all_captions()[:3], padding=True, return_tensors="pt").input_ids
    assert torch.equal(loaded(all_captions()[:3], padding=True, return_tensors="pt").input_ids, ids)
    again = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert torch.equal(again(ids).last_hidden_state, encoder(ids).last_hidden_state)
