import copy
import gc

import numpy as np
import pytest
import torch

from diffusers_crosswkv import PromptState

TEXT_DIM = 24


@pytest.fixture
def state(make_unet):
    with torch.no_grad():
        return make_unet().encode_prompt(torch.randn(3, 4, TEXT_DIM))


def assert_same(x, y):
    assert x.fusion == y.fusion
    for a, b in zip((*x.states, x.last_token), (*y.states, y.last_token), strict=True):
        assert torch.equal(a, b)


def test_save_and_load(state, make_unet, tmp_path):
    path = tmp_path / "prompt.safetensors"
    state.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["prompt.safetensors"]
    loaded = PromptState.load(path)
    assert_same(loaded, state)
    make_unet()(torch.randn(3, 1, 8, 8), 1, None, cross_attention_kwargs={"prompt_state": loaded})


def test_indexing_and_cat(state):
    assert len(state) == state.batch_size == 3
    assert_same(PromptState.cat([state[0], state[1:]]), state)
    assert_same(state[[2, 0]], PromptState.cat([state[2], state[0]]))
    assert_same(state[torch.tensor([True, False, True])], state[[0, 2]])
    for last in (-1, torch.tensor(2), np.int64(2)):
        assert_same(state[last], state[2:])
    assert repr(state).startswith("PromptState(state, batch 3, [H V K] 8x2x8 ")
    with pytest.raises(IndexError, match="prompt 3 of a PromptState with 3 prompts"):
        state[3]


def test_to_and_nbytes(state):
    half = state.to(dtype=torch.bfloat16)
    assert (half.dtype, state.dtype, half.device.type) == (torch.bfloat16, torch.float32, "cpu")
    numbers = sum(x.numel() for x in (*state.states, *state.transitions, state.last_token))
    assert state.nbytes - half.nbytes == 2 * numbers
    assert_same(state.to(torch.bfloat16), half)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        for arguments in ({"device": dtype}, {"device": "cpu", "dtype": dtype}):
            with pytest.raises(ValueError, match=f"one of float16, bfloat16, float32, float64, got {dtype}"):
                state.to(**arguments)


def test_cat_refuses_other_models(state, make_unet):
    with torch.no_grad():
        other = make_unet(seed=1).encode_prompt(torch.randn(1, 4, TEXT_DIM))
    with pytest.raises(ValueError, match="it was made for another model"):
        PromptState.cat([state, other])
    with pytest.raises(ValueError, match="at least one state"):
        PromptState.cat([])


def test_copies_do_not_drag_the_model_along(make_unet):
    unet = make_unet()
    with torch.no_grad():
        state = unet.encode_prompt(torch.randn(1, 4, TEXT_DIM))
        unet(torch.randn(1, 1, 8, 8), 1, None, cross_attention_kwargs={"prompt_state": state})
    other = copy.deepcopy(state)
    assert_same(other, state)
    assert other.states[0] is not state.states[0]
    assert (len(state._accepted), other._accepted) == (1, None)
    del unet
    gc.collect()
    assert len(state._accepted) == 0
