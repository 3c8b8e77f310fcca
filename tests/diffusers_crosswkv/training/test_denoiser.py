import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from unets import relative_error, unet_inputs

from diffusers_crosswkv import DIR7Pipeline, PromptState
from diffusers_crosswkv.models.text_windows import encode_texts
from diffusers_crosswkv.pipelines import DIR7Img2ImgPipeline
from diffusers_crosswkv.training.config import WEIGHTS, TrainingConfig
from diffusers_crosswkv.training.denoiser import initial_prompt_state, lora_layers, make_denoiser
from diffusers_crosswkv.training.text import make_text_encoder

LORA = ("to_q.lora_", "to_k.lora_", "to_v.lora_", "to_out.0.lora_")


@pytest.fixture
def make_models(make_unet, tokenizer):
    """What a run is given; the lead's `Models` has these fields among others."""

    def make(unet=None, **config):
        torch.manual_seed(5)
        text_encoder = make_text_encoder(tokenizer, 24, num_layers=1)
        unet = unet or make_unet(**config)
        return SimpleNamespace(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, text_prefix="")

    return make


def settings(weights, **others):
    return TrainingConfig("unused", 10, weights=weights, lora_rank=2, **others)


def moved(denoiser, scale=0.3):
    """Every trained parameter away from where it starts."""
    torch.manual_seed(7)
    for _, parameter in denoiser.trained_parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return denoiser


def gradients(denoiser, inputs):
    denoiser.zero_grad()
    denoiser(*inputs).square().mean().backward()
    return {name: parameter.grad for name, parameter in denoiser.trained_parameters()}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("fusion", ["state", "prefix", "paper", "softmax"])
def test_what_is_trained_gets_gradients_and_nothing_else(make_models, weights, fusion):
    """No parameter is trained in vain: DDP would wait for its gradient."""
    models = make_models(**({} if fusion == "softmax" else {"crosswkv_fusion": fusion}))
    layers = len(models.unet._crosswkv_attentions)
    if fusion == "softmax":
        config = {k: v for k, v in models.unet.config.items() if not k.startswith(("crosswkv", "_"))}
        models.unet = UNet2DConditionModel(**config)
    if weights == "state" and fusion in ("paper", "softmax"):
        with pytest.raises(ValueError, match="needs a U-Net with `crosswkv_fusion` 'state' or 'prefix'"):
            make_denoiser(models, settings(weights))
        return
    denoiser = moved(make_denoiser(models, settings(weights, train_text_encoder=False)))
    found = gradients(denoiser, unet_inputs())
    assert found and all(gradient is not None and gradient.abs().sum() > 0 for gradient in found.values())
    trained = set(found)
    frozen = [p for name, p in denoiser.named_parameters() if name not in trained]
    assert all(parameter.grad is None for parameter in frozen)
    of_unet = {name for name, _ in denoiser.named_parameters() if name.startswith("unet.")}
    expected = {
        "all": of_unet,
        "attn2": {name for name in of_unet if ".attn2." in name or "transformer_blocks.0.norm2." in name},
        "lora": {name for name in of_unet if any(part in name for part in LORA)},
        "state": {f"initial_states.{i}" for i in range(layers)},
    }[weights]
    assert trained == expected
    if weights == "lora":
        assert {name.split(".attn")[1][0] for name in trained} == {"1", "2"}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_only_what_is_trained_is_kept(make_models, weights):
    denoiser = moved(make_denoiser(make_models(), settings(weights)))
    kept = denoiser.trained_state_dict()
    assert list(kept) == [name for name, _ in denoiser.trained_parameters()]
    if weights in ("lora", "state"):
        assert sum(x.numel() for x in kept.values()) < 0.2 * sum(p.numel() for p in denoiser.parameters())
    other = make_denoiser(make_models(), settings(weights))
    inputs = {"captions": ["a three", "a four"]} if weights == "all" else {"prompt_embeds": torch.randn(2, 5, 24)}
    sample = unet_inputs()[:2]
    assert not torch.equal(other(*sample, **inputs), denoiser(*sample, **inputs))
    for name, parameter in other.trained_parameters():
        parameter.data.copy_(kept[name])
    assert torch.equal(other(*sample, **inputs), denoiser(*sample, **inputs))


def test_the_text_encoder_learns_along(make_models):
    models = make_models()
    models.text_prefix = "two "
    denoiser = make_denoiser(models, settings("all"))
    captions, (sample, timesteps, _) = ["a three", "a handwritten four"], unet_inputs()
    with torch.no_grad():
        embeds, mask = encode_texts(models.text_encoder, models.tokenizer, ["two " + text for text in captions])
        expected = denoiser(sample, timesteps, embeds, mask)
    prediction = denoiser(sample, timesteps, captions=captions)
    torch.testing.assert_close(prediction, expected)
    prediction.square().mean().backward()
    names = [name for name, parameter in denoiser.trained_parameters() if name.startswith("text_encoder.")]
    assert len(names) == len(list(models.text_encoder.parameters()))
    assert all(parameter.grad is not None for _, parameter in denoiser.trained_parameters())
    frozen = make_denoiser(models, settings("all", train_text_encoder=False))
    assert frozen.text_encoder is None and not any(p.requires_grad for p in models.text_encoder.parameters())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradient_checkpointing_changes_no_gradient(make_models, weights):
    sample, timesteps, text = unet_inputs()
    inputs = (sample, timesteps, None, None, ["a three", "a four"]) if weights == "all" else (sample, timesteps, text)
    plain = moved(make_denoiser(make_models(), settings(weights))).train()
    saving = moved(make_denoiser(make_models(), settings(weights, gradient_checkpointing=True))).train()
    assert saving.unet.is_gradient_checkpointing
    expected, found = gradients(plain, inputs), gradients(saving, inputs)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
def test_autocast_trains_float32_weights(make_models, weights, frozen):
    models = make_models()
    models.unet.to(frozen)
    denoiser = make_denoiser(models, settings(weights, mixed_precision="bf16", train_text_encoder=False))
    assert {parameter.dtype for _, parameter in denoiser.trained_parameters()} == {torch.float32}
    inputs = unet_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        half = denoiser(*inputs).float()
    half.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for _, parameter in denoiser.trained_parameters())
    full = make_denoiser(make_models(), settings(weights, train_text_encoder=False))(*inputs)
    assert 0 < relative_error(half, full) < 0.03


def test_mixed_dtypes_without_autocast_are_refused(make_models):
    models = make_models()
    models.unet.to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"U-Net in torch\.bfloat16 needs `mixed_precision` 'bf16' or 'fp16', got 'no'"
    ):
        make_denoiser(models, settings("attn2"))
    make_denoiser(models, settings("lora"))(*unet_inputs())  # adapters cast for themselves


def test_initial_states_of_zero_change_nothing(make_models, make_unet, state_fusion):
    """Bit for bit, for texts, masked ones and the empty one: training starts at the model as it is."""
    unet = make_unet(crosswkv_fusion=state_fusion)
    sample, timesteps, text = unet_inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    models = make_models(copy.deepcopy(unet))
    empty, empty_mask = encode_texts(models.text_encoder, models.tokenizer, ["", ""])
    denoiser = make_denoiser(models, settings("state"))
    with torch.no_grad():
        for embeds, keep in ((text, None), (text, mask), (empty, empty_mask)):
            untuned = unet(sample, timesteps, embeds, encoder_attention_mask=keep).sample
            assert torch.equal(denoiser(sample, timesteps, embeds, keep), untuned)


def test_the_learned_state_is_a_prompt_state(make_models, make_unet, state_fusion, tmp_path):
    """What training predicts is what the U-Net predicts of the caption that continues the state, from a file too."""
    unet = make_unet(crosswkv_fusion=state_fusion)
    denoiser = moved(make_denoiser(make_models(copy.deepcopy(unet)), settings("state")))
    initial_prompt_state(denoiser).save(tmp_path / "style.safetensors")
    style = PromptState.load(tmp_path / "style.safetensors")
    sample, timesteps, text = unet_inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = denoiser(sample, timesteps, text, mask)
        state = unet.encode_prompt(text, mask, prompt_state=style[[0, 0]])
        drawn = unet(sample, timesteps, None, cross_attention_kwargs={"prompt_state": state}).sample
        untuned = unet(sample, timesteps, text, encoder_attention_mask=mask).sample
        assert relative_error(drawn, expected) < 1e-5 < 0.01 < relative_error(untuned, expected)
        first = unet.encode_prompt(text[:, :2], prompt_state=style[[0, 0]])  # and on from there
        rest = unet.encode_prompt(text[:, 2:], mask[:, 2:], prompt_state=first)
        drawn = unet(sample, timesteps, None, cross_attention_kwargs={"prompt_state": rest}).sample
        assert relative_error(drawn, expected) < 1e-5
    other = make_unet(seed=3, crosswkv_fusion=state_fusion)
    with pytest.raises(ValueError, match="must come from a model with these weights"):
        other.encode_prompt(text, prompt_state=style[[0, 0]])


def test_a_state_steers_pipelines(make_pipeline, tmp_path):
    pipe = make_pipeline(DDIMScheduler())
    models = SimpleNamespace(**pipe.components)
    denoiser = moved(make_denoiser(models, settings("state")), 3.0)
    initial_prompt_state(denoiser).save(tmp_path / "style.safetensors")
    style = PromptState.load(tmp_path / "style.safetensors")
    image = torch.rand(1, 1, 8, 8)
    for pipeline, inputs in (
        (pipe, {}),
        (DIR7Img2ImgPipeline(**pipe.components), {"image": image, "strength": 0.7}),
    ):
        pipeline.set_progress_bar_config(disable=True)

        def draw(pipeline=pipeline, inputs=inputs, **kwargs):
            kwargs |= {"num_inference_steps": 3, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
            return pipeline(**inputs, **kwargs).images

        plain, styled = draw(prompt="a three"), draw(prompt=["a three", "a four"], prompt_state=style)
        assert styled.isfinite().all() and styled.shape[0] == 2
        assert (styled[:1] - plain).abs().max() > 0.01
        assert draw(prompt_state=style).isfinite().all()


def test_no_training_step_shows_weights(make_models, monkeypatch):
    """The fingerprint costs a probe of every layer: it is taken once, before training."""
    denoiser = make_denoiser(make_models(), settings("state"))

    def shown(*_):
        raise AssertionError("fingerprint in a training step")

    monkeypatch.setattr(type(denoiser.unet), "fingerprint", shown)
    monkeypatch.setattr(type(denoiser.unet), "weights_version", shown)
    denoiser(*unet_inputs()).square().mean().backward()
    assert initial_prompt_state(denoiser).fingerprint.numel() > 0


@pytest.mark.parametrize("states", [[], [torch.zeros(3, 2, 8, 8)]])
def test_initial_states_that_do_not_fit_are_refused(make_unet, states):
    with pytest.raises(ValueError, match=r"`initial_states` must be \[1 or B, H, V, K\] per layer"):
        make_unet()(*unet_inputs(), cross_attention_kwargs={"initial_states": states})


def test_lora_weights_are_read_by_pipelines(make_pipeline, tmp_path):
    pipe = make_pipeline()
    fresh = DIR7Pipeline(**{**pipe.components, "unet": copy.deepcopy(pipe.unet)})
    denoiser = moved(make_denoiser(SimpleNamespace(**pipe.components), settings("lora")))
    DIR7Pipeline.save_lora_weights(tmp_path, unet_lora_layers=lora_layers(denoiser))
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    inputs = unet_inputs()
    with torch.no_grad():
        expected, untuned = denoiser(*inputs), fresh.unet(*inputs).sample
        fresh.load_lora_weights(tmp_path)
        assert torch.equal(fresh.unet(*inputs).sample, expected)
        assert relative_error(untuned, expected) > 0.01


def test_lora_without_peft_says_what_to_install(make_models, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ImportError, match=r"`lora` needs the package peft, .* pip install peft"):
        make_denoiser(make_models(), settings("lora"))


SHALLOW = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}


@pytest.mark.parametrize("weights", ["attn2", "lora"])
def test_compiled_unets_keep_their_names(make_models, weights):
    denoiser = make_denoiser(make_models(**SHALLOW), settings(weights))
    kept = denoiser.trained_state_dict()
    denoiser.unet = torch.compile(denoiser.unet, backend="eager")
    assert list(denoiser.trained_state_dict()) == list(kept)
    if weights == "lora":
        assert len(lora_layers(denoiser)) == len(kept)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo looks, and hides its warning
def test_compiled_unets_go_on_from_initial_states(make_models):
    denoiser, inputs = moved(make_denoiser(make_models(**SHALLOW), settings("state"))), unet_inputs()
    expected = gradients(denoiser, inputs)
    denoiser.unet = torch.compile(denoiser.unet, backend="eager")
    for name, gradient in gradients(denoiser, inputs).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
