import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from peft import LoraConfig

from diffusers_crosswkv import DIR7UNet2DConditionModel, convert_unet
from diffusers_crosswkv.evaluation.kernel_timing import peak_memory

CONFIG = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 48,
    "attention_head_dim": 2,
}
SDXL = {  # the conditions of SDXL, small
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 48,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}


@pytest.fixture
def make_stock():
    def make(**changes):
        return UNet2DConditionModel(**CONFIG | changes).eval()

    return make


@pytest.fixture
def stock(make_stock):
    return make_stock()


def inputs():
    return torch.randn(2, 4, 8, 8), torch.tensor([1, 700]), torch.randn(2, 5, 48)


@pytest.mark.parametrize("changes", [{}, SDXL, {"encoder_hid_dim": 40, "encoder_hid_dim_type": "text_proj"}])
def test_every_stock_weight_is_copied(make_stock, state_fusion, changes):
    stock = make_stock(**changes)
    unet, report = convert_unet(stock, state_fusion, return_report=True)
    assert type(unet) is DIR7UNet2DConditionModel
    assert unet.config.crosswkv_fusion == state_fusion
    weights = unet.state_dict()
    for name, x in stock.state_dict().items():
        assert torch.equal(weights[name], x), name
    assert report.copied == {name: name for name in stock.state_dict()}
    assert set(report.new) == {name for name in weights if ".crosswkv." in name}
    assert report.unused == ()
    assert {name: unet.config[name] for name in CONFIG | changes} == CONFIG | changes


def test_new_parameters_are_those_of_a_fresh_model(stock, fusion):
    unet, report = convert_unet(stock, fusion, return_report=True, crosswkv_gate_rank=8)
    fresh = DIR7UNet2DConditionModel(**CONFIG, crosswkv_fusion=fusion, crosswkv_gate_rank=8).state_dict()
    converted = unet.state_dict()
    assert {name: x.shape for name, x in converted.items()} == {name: x.shape for name, x in fresh.items()}
    drawn = (
        ".expand.weight",
        ".to_q.weight",
        ".to_k.weight",
        ".to_v.weight",
        ".image_to_k.weight",
        ".image_to_v.weight",
    )
    for name in report.new:
        if name.endswith(drawn):
            torch.testing.assert_close(converted[name].std(), fresh[name].std(), rtol=0.3, atol=0)
        else:
            assert torch.equal(converted[name], fresh[name]), name


@pytest.mark.parametrize(("output_norm", "expected"), [(True, 1), (False, 4 / 64)])
def test_a_read_that_is_not_normalised_starts_small(stock, output_norm, expected):
    unet = convert_unet(stock, crosswkv_output_norm=output_norm)
    weights = [x for name, x in unet.named_parameters() if name.endswith(".crosswkv.norm.weight")]
    assert weights
    assert all((x == expected).all() for x in weights)


def test_all_but_cross_attention_works_as_before(stock, fusion):
    for name, module in stock.named_modules():
        if name.endswith(".attn2.to_out.0"):
            module.weight.data.zero_()
            module.bias.data.zero_()
    sample, timestep, text = inputs()
    with torch.no_grad():
        before = stock(sample, timestep, text).sample
        after = convert_unet(stock, fusion)(sample, timestep, text).sample
    assert torch.equal(before, after)


def test_paper_fusion_swaps_the_sides_of_the_inner_product(stock):
    unet, report = convert_unet(stock, "paper", return_report=True)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    ours, theirs = unet.get_submodule(layer), stock.get_submodule(layer)
    assert torch.equal(ours.to_q.weight, theirs.to_k.weight)
    assert torch.equal(ours.to_k.weight, theirs.to_q.weight)
    assert torch.equal(ours.to_out[0].weight, theirs.to_out[0].weight)
    assert f"{layer}.to_v.weight" in report.new
    assert f"{layer}.to_v.weight" in report.unused
    assert "new besides `.crosswkv.`: 4 projections" in str(report)
    unet(*inputs()).sample.mean().backward()
    assert ours.to_v.weight.grad.abs().sum() > 0


def test_equal_shapes_are_not_enough(make_stock):
    """Text as wide as the image: in `paper` fusion `to_v` would fit, but it has learned to read texts."""
    _, report = convert_unet(make_stock(cross_attention_dim=64), "paper", return_report=True)
    assert sum(name.endswith("attn2.to_v.weight") for name in report.new) == 4


def test_projections_of_another_width_are_new(stock):
    unet, report = convert_unet(stock, return_report=True, crosswkv_value_dim=128)
    new = {name.partition(".attn2.")[2] for name in report.new if ".crosswkv." not in name}
    assert new == {"to_v.weight", "to_out.0.weight", "to_out.0.bias"}
    assert set(report.unused) == {name for name in report.new if ".crosswkv." not in name}
    assert all(x.isfinite().all() for x in unet.state_dict().values())
    assert unet(*inputs()).sample.isfinite().all()


def test_nothing_is_shared_and_nothing_else_is_carried(stock):
    stock.requires_grad_(False).train()
    before = {name: x.clone() for name, x in stock.state_dict().items()}
    unet = convert_unet(stock)
    assert unet.training
    for parameter in unet.parameters():
        assert parameter.requires_grad
        parameter.data.add_(1)
    assert all(torch.equal(x, before[name]) for name, x in stock.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(stock, fusion, dtype):
    assert {x.dtype for x in convert_unet(stock.to(dtype), fusion).state_dict().values()} == {dtype}


def test_mixed_dtypes(stock):
    stock.half()
    stock.conv_out.float()
    unet = convert_unet(stock)
    assert unet.conv_out.weight.dtype == torch.float32
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn2.crosswkv.norm.weight.dtype == torch.float16


def test_memory(make_stock):
    """The result, and next to nothing beside it."""
    stock = make_stock(block_out_channels=(64, 256))
    unet = convert_unet(stock)
    weights = sum(x.nbytes for x in unet.state_dict().values())
    peak = peak_memory(lambda: convert_unet(stock), torch.device("cpu"))
    assert weights <= peak < 1.1 * weights


def test_buffers_that_no_file_holds(make_stock):
    changes = {
        "down_block_types": ("KDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    stock = make_stock(**changes)
    kernels = {name: x for name, x in stock.named_buffers() if name not in stock.state_dict()}
    assert kernels
    unet = convert_unet(stock)
    assert all(torch.equal(x, dict(unet.named_buffers())[name]) for name, x in kernels.items())


def test_fused_projections_are_left_behind(stock):
    before = set(stock.state_dict())
    stock.fuse_qkv_projections()
    unet, report = convert_unet(stock, return_report=True)
    assert set(report.copied.values()) == before
    assert set(report.unused) == set(stock.state_dict()) - before
    assert unet(*inputs()).sample.isfinite().all()


def test_round_trip(stock, tmp_path):
    unet = convert_unet(stock)
    unet.save_pretrained(tmp_path)
    loaded = DIR7UNet2DConditionModel.from_pretrained(tmp_path).eval()
    arguments = inputs()
    with torch.no_grad():
        assert torch.equal(unet(*arguments).sample, loaded(*arguments).sample)


def test_bad_sources(stock, make_stock):
    with pytest.raises(ValueError, match=r"must be a UNet2DConditionModel, got str; pass `pipe\.unet`, or"):
        convert_unet("some/repository")
    with pytest.raises(ValueError, match="but is a DIR7UNet2DConditionModel already"):
        convert_unet(convert_unet(stock))
    none = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None}
    with pytest.raises(ValueError, match="`unet` must have cross-attention, but none of its blocks has"):
        convert_unet(make_stock(**none))
    simple = {
        "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    with pytest.raises(ValueError, match="not the SimpleCrossAttn blocks"):
        convert_unet(make_stock(**simple))
    with torch.device("meta"):
        empty = make_stock()
    with pytest.raises(ValueError, match=r"is on the meta device; call `pipe\.remove_all_hooks\(\)`"):
        convert_unet(empty)
    cast = make_stock()
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"must have plain weights, but .* is torch\.float8_e4m3fn; load it without"):
        convert_unet(cast)
    stock.conv_in = torch.nn.Conv2d(5, 32, 3, padding=1)
    with pytest.raises(ValueError, match=r"must be those of its config, but conv_in\.weight is not"):
        convert_unet(stock)


def test_adapters_must_be_unloaded(stock):
    stock.add_adapter(LoraConfig(target_modules=["to_q"]), "style")
    with pytest.raises(
        ValueError, match=r"must be without LoRA layers, but has style; call `pipe\.unload_lora_weights"
    ):
        convert_unet(stock)
    stock.unload_lora()
    convert_unet(stock)
    stock.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(IPAdapterAttnProcessor2_0(64, 48))
    with pytest.raises(ValueError, match=r"but mid_block\.attentions\.0\..*attn2\.processor has some"):
        convert_unet(stock)
    stock.config.encoder_hid_dim_type = "ip_image_proj"  # as `load_ip_adapter` does
    with pytest.raises(ValueError, match=r"call `pipe\.unload_ip_adapter\(\)` first"):
        convert_unet(stock)


def test_bad_options(stock):
    with pytest.raises(ValueError, match=r"must be of crosswkv_head_dim, crosswkv_value_dim, .*, got head_dim\."):
        convert_unet(stock, head_dim=32)
    with pytest.raises(ValueError, match="got crosswkv_fusion"):
        convert_unet(stock, crosswkv_fusion="paper")
    with pytest.raises(ValueError, match="`fusion` must be one of state, paper, prefix, got 'softmax'"):
        convert_unet(stock, "softmax")
    with pytest.raises(ValueError, match=r"`head_dim` / 4 .* must divide `hidden_size`, got 48 and 64"):
        convert_unet(stock, crosswkv_head_dim=48)
