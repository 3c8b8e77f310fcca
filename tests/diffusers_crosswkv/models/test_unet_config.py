"""Every argument of the stock class's config and forward, with text and with prompt states."""

import copy

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from unets import TEXT_DIM, read, relative_error, unet_inputs

from diffusers_crosswkv import DIR7UNet2DConditionModel, PromptState

TIME_DIM = 64  # of the time embedding: four times the first block's width


def works(unet, inputs, encode=None, **kwargs):
    """From text and from a prompt state the same, and finite; returns what is predicted."""
    with torch.no_grad():
        expected = unet(*inputs, **kwargs).sample
        state = unet.encode_prompt(inputs[2], kwargs.get("encoder_attention_mask"), **(encode or {}))
        kwargs = {name: x for name, x in kwargs.items() if name != "encoder_attention_mask"}
        needs_text = unet.config.addition_embed_type in ("text", "text_image")
        text = inputs[2] if needs_text else None
        got = unet(*inputs[:2], text, cross_attention_kwargs={"prompt_state": state}, **kwargs).sample
    assert expected.isfinite().all()
    assert relative_error(got, expected) < 1e-5
    return expected


@pytest.mark.parametrize(
    "config",
    [
        {"use_linear_projection": True},
        {"transformer_layers_per_block": (1, 2)},
        {"transformer_layers_per_block": [[1], [2]], "reverse_transformer_layers_per_block": [[2, 1], 1]},
        {"only_cross_attention": True},
        {"only_cross_attention": (True, False), "mid_block_only_cross_attention": True},
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"},
        {"cross_attention_dim": (TEXT_DIM, TEXT_DIM)},
        {"attention_head_dim": (2, 4)},
        {"layers_per_block": (1, 2)},
        {"upcast_attention": True, "dropout": 0.1, "resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_type": "fourier", "center_input_sample": True, "time_embedding_act_fn": "silu"},
        {"conv_in_kernel": 1, "conv_out_kernel": 1, "resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0},
        {"encoder_hid_dim": 10, "encoder_hid_dim_type": "text_proj"},
        {"encoder_hid_dim": 10},
    ],
    ids=str,
)
def test_blocks_and_widths(make_unet, state_fusion, config):
    unet = make_unet(crosswkv_fusion=state_fusion, **copy.deepcopy(config))
    inputs = unet_inputs()
    if "encoder_hid_dim" in config:
        inputs = (*inputs[:2], torch.randn(2, 5, 10))
    works(unet, inputs)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({"num_class_embeds": 5}, {"class_labels": torch.tensor([0, 4])}),
        ({"class_embed_type": "timestep"}, {"class_labels": torch.tensor([0, 4])}),
        ({"class_embed_type": "identity"}, {"class_labels": torch.ones(2, TIME_DIM)}),
        (
            {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6},
            {"class_labels": torch.ones(2, 6)},
        ),
        (
            {
                "class_embed_type": "simple_projection",
                "projection_class_embeddings_input_dim": 6,
                "class_embeddings_concat": True,
            },
            {"class_labels": torch.ones(2, 6)},
        ),
        ({"time_cond_proj_dim": 7}, {"timestep_cond": torch.ones(2, 7)}),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, {}),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 6 * 4 + 9,
            },
            {"added_cond_kwargs": {"text_embeds": torch.ones(2, 9), "time_ids": torch.ones(2, 6)}},
        ),
    ],
    ids=str,
)
def test_embeddings(make_unet, config, arguments):
    unet = make_unet(**config)
    expected = works(unet, unet_inputs(), **arguments)
    other = {name: x * 0.5 for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    if other:
        torch.manual_seed(0)
        with torch.no_grad():
            assert relative_error(unet(*unet_inputs(), **{**arguments, **other}).sample, expected) > 1e-4


@pytest.mark.parametrize(
    ("config", "image_dim"),
    [
        ({"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": TEXT_DIM}, TEXT_DIM),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 11}, 11),
        (
            {
                "addition_embed_type": "text_image",
                "encoder_hid_dim_type": "text_image_proj",
                "encoder_hid_dim": TEXT_DIM,
            },
            TEXT_DIM,
        ),
        ({"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 11}, 11),
    ],
    ids=str,
)
def test_images_in_the_place_of_text(make_unet, config, image_dim):
    """Kandinsky's ways: the tokens come from image embeddings, with the text or in its place."""
    unet = make_unet(**config)
    embeds = {"image_embeds": torch.randn(2, image_dim), "text_embeds": torch.randn(2, TEXT_DIM)}
    added = {"added_cond_kwargs": embeds}
    works(unet, unet_inputs(), encode=added, **added)


def test_gligen(make_unet):
    unet, inputs = make_unet(attention_type="gated", cross_attention_dim=TEXT_DIM), unet_inputs()
    boxes = {
        "boxes": torch.rand(2, 3, 4),
        "masks": torch.ones(2, 3),
        "positive_embeddings": torch.randn(2, 3, TEXT_DIM),
    }
    with torch.no_grad():
        plain = unet(*inputs).sample
        grounded = unet(*inputs, cross_attention_kwargs={"gligen": boxes}).sample
        state = unet.encode_prompt(inputs[2])
        got = read(unet, inputs, state, cross_attention_kwargs={"gligen": boxes})
    assert relative_error(grounded, plain) > 1e-4
    assert relative_error(got, grounded) < 1e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cross_attention_dim": (TEXT_DIM, 32)}, "`cross_attention_dim` must be one width"),
        ({"dual_cross_attention": True}, "got `dual_cross_attention=True`, which cuts the text in two"),
        (
            {
                "cross_attention_norm": "layer_norm",
                "down_block_types": ["SimpleCrossAttnDownBlock2D"] * 2,
                "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2,
            },
            "not the SimpleCrossAttn blocks",
        ),
    ],
)
def test_what_cannot_be(make_unet, config, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**config)


def test_text_for_an_embedding_is_asked_for(make_unet):
    unet, inputs = make_unet(addition_embed_type="text", addition_embed_type_num_heads=2), unet_inputs()
    with torch.no_grad():
        state = unet.encode_prompt(inputs[2])
    with pytest.raises(ValueError, match="besides it for `addition_embed_type='text'`, got NoneType"):
        read(unet, inputs, state)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of Diffusers' own calls
def test_residuals_of_controlnets_and_t2i_adapters(make_unet):
    unet, inputs = make_unet(), unet_inputs()
    names = ("block_out_channels", "down_block_types", "layers_per_block")
    config = {name: unet.config[name] for name in names}
    controlnet = ControlNetModel(
        **config,
        in_channels=1,
        conditioning_channels=1,
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=4,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8, 8, 8),
    )
    for parameter in controlnet.parameters():
        parameter.data += 0.1
    with torch.no_grad():
        down, mid = controlnet(*inputs, controlnet_cond=torch.randn(2, 1, 64, 64), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        plain = unet(*inputs).sample
        assert relative_error(works(unet, inputs, **residuals), plain) > 1e-3
        adapter = T2IAdapter(in_channels=1, channels=(16, 32), num_res_blocks=1, downscale_factor=8)
        features = adapter(torch.randn(2, 1, 64, 64))
        adapted = unet(*inputs, down_intrablock_additional_residuals=[x.clone() for x in features]).sample
        state = unet.encode_prompt(inputs[2])
        got = read(unet, inputs, state, down_intrablock_additional_residuals=[x.clone() for x in features])
    assert relative_error(adapted, plain) > 1e-3
    assert relative_error(got, adapted) < 1e-5


def test_the_class_says_what_its_states_are():
    assert DIR7UNet2DConditionModel.prompt_state_class is PromptState
