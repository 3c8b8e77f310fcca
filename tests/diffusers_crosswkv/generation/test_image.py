import inspect

import pytest
import torch

from diffusers_crosswkv.generation import ImageConfig, StoppedError, make_image, prompt_length

SEVEN = ImageConfig("a handwritten seven", seed=3, num_inference_steps=4, guidance_scale=2.0)


def test_stopping_between_steps(make_pipeline):
    pipeline = make_pipeline()
    expected = make_image(pipeline, SEVEN).image.tobytes()
    calls, steps = [], []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))

    def stop_after_two(done, total):
        steps.append((done, total))
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        make_image(pipeline, SEVEN, on_step=stop_after_two)
    assert steps == [(1, 4), (2, 4)]
    assert len(calls) == 2
    assert make_image(pipeline, SEVEN).image.tobytes() == expected


def test_torchs_own_generator_is_left_alone(make_pipeline):
    pipeline = make_pipeline()
    before = torch.random.get_rng_state()
    make_image(pipeline, SEVEN)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_defaults_of_the_pipeline_are_filled_in(make_pipeline):
    made = make_image(make_pipeline(), ImageConfig("a seven", num_inference_steps=1))
    assert (made.config.guidance_scale, made.config.height, made.config.width) == (5.0, 8, 8)
    assert not made.flagged


def test_a_blackened_image_is_flagged(make_pipeline, monkeypatch):
    pipeline = make_pipeline()
    call = type(pipeline).__call__

    def blackened(self, *args, **kwargs):
        output = call(self, *args, **kwargs)
        output.nsfw_content_detected = [True]
        return output

    blackened.__signature__ = inspect.signature(call)
    monkeypatch.setattr(type(pipeline), "__call__", blackened)
    assert make_image(pipeline, SEVEN).flagged


def test_prompt_length_counts_what_is_encoded(make_pipeline):
    pipeline = make_pipeline()
    text = ", ".join(["a handwritten seven"] * 50)
    short, long = prompt_length(pipeline, "a seven"), prompt_length(pipeline, text)
    assert (short.windows, short.window, short.lost) == (1, 77, 0)
    assert long.windows > 1
    assert long.lost == 0
    assert (short.tokens, long.tokens) == tuple(int(pipeline.encode_prompt(t)[1].sum()) for t in ("a seven", text))
    assert str(short) == f"{short.tokens} tokens in 1 window of up to 77"
    assert prompt_length(object(), "a seven") is None
