"""From prompts in any form to prompt states: text encoders, windows, embeddings."""

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    GPT2Config,
    MT5Config,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaConfig,
)

from diffusers_crosswkv import DIR7Pipeline
from diffusers_crosswkv.data.digits import all_captions
from diffusers_crosswkv.training.text import fit_tokenizer, make_text_encoder

WIDTH = 24
LONG = "a handwritten seven, the digit two, a picture of the number three, handwriting: one, " * 6
NARROW = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NARROW_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def word_tokenizer(template, max_length, pad="<pad>"):
    """A tokenizer as T5's, XLM-R's or GPT's, but for its vocabulary: words of the digits' captions."""
    trained = Tokenizer(models.WordLevel(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(all_captions(), trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    if template is not None:
        ids = [(token, trained.token_to_id(token)) for token in ("<s>", "</s>")]
        trained.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_max_length=max_length,
        unk_token="<unk>",
        eos_token="</s>",
        **({} if pad is None else {"pad_token": pad}),
    )


def t5(kind=T5EncoderModel, config=T5Config, max_length=64):
    tokenizer = word_tokenizer("$A </s>", max_length)
    return kind(config(vocab_size=len(tokenizer), **NARROW_T5)), tokenizer


def t5_with_decoder():
    tokenizer = word_tokenizer("$A </s>", 64)
    config = MT5Config(vocab_size=len(tokenizer), decoder_start_token_id=1, **NARROW_T5)
    return AutoModel.from_config(config), tokenizer


def xlm_roberta():
    tokenizer = word_tokenizer("<s> $A </s>", 62)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=1, **NARROW)
    return AutoModel.from_config(config), tokenizer


def gpt2():
    tokenizer = word_tokenizer(None, 64, pad=None)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=WIDTH, n_layer=1, n_head=2)
    return AutoModel.from_config(config), tokenizer


ENCODERS = {
    "t5": t5,
    "umt5": lambda: t5(UMT5EncoderModel, UMT5Config, int(1e30)),
    "mt5 with decoder": t5_with_decoder,
    "xlm-roberta": xlm_roberta,
    "gpt2": gpt2,
}


@pytest.fixture
def pipeline_with(make_unet):
    def make(text_encoder, tokenizer, **options):
        scheduler = DPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.0)
        pipeline = DIR7Pipeline(None, text_encoder.eval(), tokenizer, make_unet(), scheduler, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def warnings_of_pipelines(monkeypatch):
    """What the pipelines warn of, in order."""
    seen = []
    logger = logging.get_logger("diffusers_crosswkv.pipelines.prompt_encoding")
    monkeypatch.setattr(logger, "warning", seen.append)
    return seen


@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders(pipeline_with, name, tmp_path, warnings_of_pipelines):
    """Short, empty and long prompts in one batch; padding changes nothing; saved and loaded."""
    text_encoder, tokenizer = ENCODERS[name]()
    pipeline = pipeline_with(text_encoder, tokenizer)
    assert pipeline.config.prepend_endoftext is False
    prompts = ["a handwritten seven", "", LONG]
    together = pipeline.encode_prompt_state(prompts)
    for i, prompt in enumerate(prompts):
        alone = pipeline.encode_prompt_state(prompt)
        for x, y in zip(together[i].states, alone.states, strict=True):
            assert (x - y).norm() <= 1e-4 * y.norm() + 1e-6
    lengths = [[len(window) for window in pipeline.prompt_windows(prompt)] for prompt in prompts]
    assert all(len(windows) == 1 for windows in lengths[:2])
    assert max(map(max, lengths)) <= tokenizer.model_max_length
    inside = tokenizer(LONG, add_special_tokens=False).input_ids
    assert [token for window in pipeline.prompt_windows(LONG) for token in window if token > 2] == inside
    assert len(warnings_of_pipelines) == 2 * (len(lengths[2]) > 1)
    assert pipeline(prompts[0], num_inference_steps=2).images[0].size == (8, 8)
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path).encode_prompt_state(prompts)
    for x, y in zip(again.states, together.states, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_windows_of_clip_and_their_warning(make_pipeline, warnings_of_pipelines):
    pipeline = make_pipeline()
    pipeline.encode_prompt_state("a handwritten seven")
    assert warnings_of_pipelines == []
    windows = pipeline.prompt_windows(LONG)
    assert len(windows) > 1
    pipeline.encode_prompt_state(LONG)
    tokens = sum(map(len, windows))
    assert f"A prompt of {tokens} tokens is read in {len(windows)} windows of at most" in warnings_of_pipelines[0]


def test_every_word_of_a_long_prompt_counts(make_pipeline, warnings_of_pipelines):
    pipeline = make_pipeline()
    words = LONG.split()
    whole = pipeline.encode_prompt_state(LONG)
    for place in (0, len(words) // 2, -1):
        changed = words.copy()
        changed[place] = "nine"
        other = pipeline.encode_prompt_state(" ".join(changed))
        assert all(not torch.equal(x, y) for x, y in zip(other.states, whole.states, strict=True))


def test_a_prompt_of_4096_tokens_has_a_state_of_the_same_size(make_pipeline, warnings_of_pipelines):
    pipeline = make_pipeline()
    long = "seven " * 4096
    assert sum(map(len, pipeline.prompt_windows(long))) > 4096
    assert pipeline.encode_prompt_state(long).nbytes == pipeline.encode_prompt_state("seven").nbytes


def test_windows_are_scanned_one_after_the_other(make_pipeline, warnings_of_pipelines):
    pipeline = make_pipeline().to(torch.float64)
    state = None
    with torch.no_grad():
        for window in pipeline.prompt_windows(LONG):
            embeds = pipeline.text_encoder(torch.tensor([window])).last_hidden_state
            state = pipeline.unet.encode_prompt(embeds, prompt_state=state)
    for x, y in zip(pipeline.encode_prompt_state(LONG).states, state.states, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def images(pipeline, *args, **kwargs):
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    kwargs = {"num_inference_steps": 2, "output_type": "pt", "generator": generator} | kwargs
    return pipeline(*args, **kwargs).images


def test_embeddings_in_the_place_of_texts(make_pipeline, fusion):
    pipeline = make_pipeline(crosswkv_fusion=fusion).to(torch.float64)  # batches of other lengths round otherwise
    prompts = ["a handwritten seven", "手写的数字三, the digit three"]
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=True, negative_prompt="a zero"
    )
    assert embeds.shape[:2] == mask.shape
    assert (len(negative), negative.shape[:2]) == (2, negative_mask.shape)
    assert negative.shape[1] < embeds.shape[1]
    got = images(
        pipeline,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
    )
    torch.testing.assert_close(got, images(pipeline, prompts, negative_prompt="a zero"), rtol=0, atol=1e-9)
    unmasked = images(pipeline, prompt_embeds=embeds, negative_prompt="a zero")
    assert not torch.equal(unmasked, got)


def test_embeddings_continue_a_state(make_pipeline):
    pipeline = make_pipeline()
    style = pipeline.encode_prompt_state("a seven")
    embeds, mask, *_ = pipeline.encode_prompt("the digit two")
    expected = pipeline.encode_prompt_state("the digit two", prompt_state=style)
    got = pipeline.encode_prompt_state(prompt_state=style, prompt_embeds=embeds, prompt_attention_mask=mask)
    assert all(torch.equal(x, y) for x, y in zip(got.states, expected.states, strict=True))


def test_states_are_compared_with_weights_that_changed_unseen(make_pipeline):
    """`EMAModel.copy_to` writes through `.data`, which no version of a tensor counts."""
    pipeline = make_pipeline()
    state = pipeline.encode_prompt_state("a seven")
    arguments = {"prompt_state": state, "negative_prompt_state": state, "num_inference_steps": 1}
    pipeline(**arguments)
    EMAModel([1.3 * x.detach() for x in pipeline.unet.parameters()]).copy_to(pipeline.unet.parameters())
    for prompt in (None, "a three"):  # read as it is, and continued
        with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
            pipeline(prompt, **arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_states_are_compared_with_a_compiled_unet(make_pipeline):
    pipeline, state = make_pipeline(), make_pipeline(seed=1).encode_prompt_state("a seven")
    pipeline.unet.compile(backend="eager")
    with pytest.raises(ValueError, match="weights, but those that wrote it differ by"):
        pipeline(prompt_state=state, negative_prompt_state=state, num_inference_steps=1)


def test_one_call_compares_a_state_once(make_pipeline, monkeypatch):
    pipeline, shown = make_pipeline(), []
    state = pipeline.encode_prompt_state("a seven")
    fingerprint = pipeline.unet.fingerprint
    monkeypatch.setattr(pipeline.unet, "fingerprint", lambda: shown.append(1) or fingerprint())
    pipeline(prompt_state=state, guidance_scale=1.0, num_inference_steps=3)
    assert len(shown) == 1


def test_encode_prompt_repeats_for_images(make_pipeline):
    pipeline = make_pipeline()
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(["a 7", "a 3"], None, 3, True)
    assert len(embeds) == len(mask) == len(negative) == len(negative_mask) == 6
    assert torch.equal(embeds[0], embeds[2])
    assert not torch.equal(embeds[2], embeds[3])
    assert pipeline.encode_prompt("a 7")[2:] == (None, None)


def test_clip_skip(make_unet, pipeline_with):
    tokenizer = fit_tokenizer(all_captions())
    text_encoder = make_text_encoder(tokenizer, WIDTH, num_layers=3)
    pipeline = pipeline_with(text_encoder, tokenizer)
    ids = torch.tensor(pipeline.prompt_windows("a seven"))
    hidden = text_encoder(ids, output_hidden_states=True).hidden_states
    for skip in (0, 1, 2):
        embeds, *_ = pipeline.encode_prompt("a seven", clip_skip=skip)
        torch.testing.assert_close(embeds, text_encoder.final_layer_norm(hidden[-1 - skip]))
    assert torch.equal(pipeline.encode_prompt("a seven", clip_skip=0)[0], pipeline.encode_prompt("a seven")[0])
    assert not torch.equal(images(pipeline, ["a 7", "a 3"], clip_skip=1), images(pipeline, ["a 7", "a 3"]))
    with pytest.raises(ValueError, match="`clip_skip` must be from 0 to 2 and the text encoder CLIP's, got 3"):
        pipeline("a seven", clip_skip=3)
    with pytest.raises(ValueError, match="the text encoder CLIP's, got 1 and XLMRobertaModel"):
        pipeline_with(*xlm_roberta())("a seven", clip_skip=1)


def test_textual_inversion(make_pipeline):
    pipeline = make_pipeline()
    before = pipeline.encode_prompt("a <style> seven")[0]
    with_one = {"<style>": torch.randn(1, WIDTH)}
    pipeline.load_textual_inversion(with_one, token="<style>")
    with_two = {"<long>": torch.randn(2, WIDTH)}
    pipeline.load_textual_inversion(with_two, token="<long>")
    style = pipeline.encode_prompt("a <style> seven")[0]
    assert style.shape[1] < before.shape[1]  # one token now
    assert pipeline.encode_prompt("a <long> seven")[0].shape[1] == style.shape[1] + 1
    assert pipeline("a <style> seven", num_inference_steps=1).images
    pipeline.unload_textual_inversion()
    torch.testing.assert_close(pipeline.encode_prompt("a <style> seven")[0], before)


def test_bad_prompts(make_pipeline, pipeline_with):
    pipeline = make_pipeline()
    embeds = torch.randn(1, 4, WIDTH)
    state = pipeline.encode_prompt_state(["a 7", "a 3"])
    for arguments, message in (
        ({"prompt": "a", "prompt_embeds": embeds}, "`prompt` and `prompt_embeds` exclude each other"),
        ({"prompt": ["a", "gr\udcfcn"]}, r"`prompt` must be valid Unicode, got '\\udcfc' at 2; write it in UTF-8"),
        ({"prompt": "a", "negative_prompt": "\ud83d"}, r"`negative_prompt` must be valid Unicode, got '\\ud83d' at 0"),
        ({"prompt_embeds": embeds[0]}, r"`prompt_embeds` must be a tensor \[B, L, D_q\] .*, got \[4, 24\]"),
        (
            {"prompt_embeds": embeds, "prompt_attention_mask": torch.ones(1, 3)},
            r"\[B, L\] = \[1, 4\] .*, got \[1, 3\]",
        ),
        ({"prompt": "a", "prompt_attention_mask": torch.ones(1, 4)}, "belongs to `prompt_embeds`, which is missing"),
        ({"prompt": "a", "prompt_state": state}, "one state or one per prompt, got 2 states and 1 prompts"),
        ({"prompt": "a", "negative_prompt_state": state}, "one negative prompt or one per prompt, got 2 and 1"),
        ({"prompt": "a", "cross_attention_kwargs": {"prompt_state": state}}, "pass prompt states as `prompt_state=`"),
        ({"prompt_embeds": embeds[..., :-1]}, r"D_q = cross_attention_dim = 24, got \[1, 4, 23\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**arguments)
    with pytest.raises(ValueError, match="`prompt` must be valid Unicode"):
        pipeline.prompt_windows("gr\udcfcn")
    with pytest.raises(ValueError, match=r"`prepend_endoftext` needs a tokenizer with <\|endoftext\|>"):
        pipeline_with(*t5(), prepend_endoftext=True)


def test_without_text_encoder(make_pipeline):
    """Whoever has states or embeddings needs no text encoder in memory."""
    pipeline = make_pipeline()
    expected = images(pipeline, ["a 7", "a 3"])
    state, negative = pipeline.encode_prompt_state(["a 7", "a 3"]), pipeline.encode_prompt_state("")
    pipeline = DIR7Pipeline(**(pipeline.components | {"text_encoder": None, "tokenizer": None}))
    pipeline.set_progress_bar_config(disable=True)
    got = images(pipeline, prompt_state=state, negative_prompt_state=negative)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert len(images(pipeline, prompt_state=state, guidance_scale=1.0)) == 2
    with pytest.raises(ValueError, match=r"pass prompt states or embeddings, the negative ones too \(or guidance"):
        pipeline(prompt_state=state)
