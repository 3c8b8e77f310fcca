"""A trained U-Net with softmax cross-attention becomes a DIR-7 U-Net: what has a place there is copied."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging
from torch import nn

from ..models import CrossWKV, DIR7UNet2DConditionModel

logger = logging.get_logger(__name__)

OPTIONS = [name for name in inspect.signature(DIR7UNet2DConditionModel).parameters if name.startswith("crosswkv_")]
# Which stock projection of a cross-attention serves as which of ours. In `paper` fusion the receptance comes from the
# text and the key from the image: the two sides of an inner product change places, and no stock value reads the image.
PROJECTIONS = {
    "state": {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out.0"},
    "prefix": {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out.0"},
    "paper": {"to_q": "to_k", "to_k": "to_q", "to_out.0": "to_out.0"},
}
# Products of keys and receptances grow with the head, and without a normalisation nothing divides what is read by
# their sum. In small trials with heads of 8 to 64 the loss right after conversion was lowest near this weight.
WEIGHT_TIMES_HEAD_DIM = 4.0


@dataclass(frozen=True)
class ConversionReport:
    """Where the parameters of a converted U-Net come from, and what of the stock U-Net found no place.

    Args:
        copied: name in the result to name in the stock U-Net; they differ in `paper` fusion alone.
        new: parameters at their initial values: all of `attn2.crosswkv`, and projections that do not fit.
        unused: of the stock U-Net.
        new_numbers, all_numbers: how many numbers the new parameters, and all parameters, have.
    """

    copied: dict[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    new_numbers: int
    all_numbers: int

    def __str__(self) -> str:
        projections = [name for name in self.new if ".crosswkv." not in name]
        lines = [
            f"{len(self.copied)} weights were copied; {len(self.new)} are new, {self.new_numbers / 1e6:.1f} of "
            f"{self.all_numbers / 1e6:.1f} M numbers"
        ]
        if projections:
            lines.append(f"new besides `.crosswkv.`: {len(projections)} projections ({projections[0]}, ...)")
        if self.unused:
            lines.append(f"stock weights without a place: {len(self.unused)} ({self.unused[0]}, ...)")
        return "; ".join(lines)


@overload
def convert_unet(
    unet: UNet2DConditionModel, fusion: str = ..., *, return_report: Literal[False] = ..., **crosswkv_options: Any
) -> DIR7UNet2DConditionModel: ...


@overload
def convert_unet(
    unet: UNet2DConditionModel, fusion: str = ..., *, return_report: Literal[True], **crosswkv_options: Any
) -> tuple[DIR7UNet2DConditionModel, ConversionReport]: ...


def convert_unet(
    unet: UNet2DConditionModel, fusion: str = "state", *, return_report: bool = False, **crosswkv_options: Any
) -> DIR7UNet2DConditionModel | tuple[DIR7UNet2DConditionModel, ConversionReport]:
    """A DIR-7 U-Net of the same config with the weights of a stock U-Net.

    **The result must be trained before it draws anything useful.** It is a start, not an equivalent: what was learned
    for a softmax over tokens is now written into a state and read from it, which is another function. All that is not
    cross-attention works as before.

    In `state` and `prefix` fusion every stock weight is copied. In `paper` fusion `to_q` and `to_k` change places
    (there the text is the receptance and the image the key), and `to_v`, which reads the image there, is new. What
    CrossWKV adds, the parameters with `.crosswkv.` in their names, starts at its initial values; but for the
    weight of what `state` fusion reads with `crosswkv_output_norm=False`, which starts at 4 / `crosswkv_head_dim`
    instead of 1: nothing divides it by the sum of its weights, as softmax does.

    `unet` is left as it is and shares no memory with the result, so that it can teach it. Dtypes and devices are those
    of `unet`; attention processors, hooks and `requires_grad` are not carried over. Beside the result no further copy
    of the weights is made.

        unet = UNet2DConditionModel.from_pretrained(repository, subfolder="unet")
        student = convert_unet(unet)
        new = [parameter for name, parameter in student.named_parameters() if ".crosswkv." in name]

    Args:
        unet: of any config but those with SimpleCrossAttn blocks or `cross_attention_norm`.
        fusion: `state`, `prefix` or `paper`; see [`CrossWKV`].
        return_report: return a [`ConversionReport`] too: names of what was copied, is new, and found no place.
        crosswkv_options: further `crosswkv_...` values of the config of [`DIR7UNet2DConditionModel`]. With another
            `crosswkv_value_dim` than the blocks' widths `to_v` and `to_out` do not fit and are new.

    Raises:
        ValueError: `unet` is something else, has been converted, or carries what has no place in a DIR-7 U-Net
            (an IP-Adapter, LoRA layers, quantized or offloaded weights); or an option does not exist or fit.
    """
    check_source(unet)
    check_options(crosswkv_options)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        result = DIR7UNet2DConditionModel(**config, crosswkv_fusion=fusion, **crosswkv_options)
    if not crosswkv_attentions(result):
        raise ValueError("`unet` must have cross-attention, but none of its blocks has; see `down_block_types`.")
    stock = unet.state_dict()
    sources = sources_of(result, {name: x.shape for name, x in stock.items()})
    fill_new(result, stock, sources)
    result.load_state_dict({name: stock[of].clone() for name, of in sources.items()}, strict=False, assign=True)
    copy_buffers(unet, result)
    result.train(unet.training)
    report = report_of(result, stock, sources)
    logger.warning(f"Converted to `{fusion}` fusion: {report}. Train the U-Net before you use it.")
    return (result, report) if return_report else result


def check_source(unet: UNet2DConditionModel) -> None:
    """What can be converted: a plain stock U-Net whose weights are at hand."""
    if isinstance(unet, DIR7UNet2DConditionModel):
        raise ValueError("`unet` must be a stock UNet2DConditionModel, but is a DIR7UNet2DConditionModel already.")
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(
            f"`unet` must be a UNet2DConditionModel, got {type(unet).__name__}; pass `pipe.unet`, or "
            "`UNet2DConditionModel.from_pretrained(repository, subfolder='unet')`."
        )
    small = [name for name, x in unet.state_dict().items() if x.dtype.itemsize < 2]
    if small or getattr(unet, "hf_quantizer", None) is not None:
        what = f"{small[0]} is {unet.state_dict()[small[0]].dtype}" if small else "they are quantized"
        raise ValueError(
            f"`unet` must have plain weights, but {what}; load it without quantization or layerwise casting."
        )
    if getattr(unet, "peft_config", None):
        raise ValueError(
            f"`unet` must be without LoRA layers, but has {', '.join(unet.peft_config)}; call "
            "`pipe.unload_lora_weights()` first, after `pipe.fuse_lora()` if it shall stay in the weights."
        )
    if unet.config.encoder_hid_dim_type == "ip_image_proj":
        raise ValueError("`unet` must be without an IP-Adapter; call `pipe.unload_ip_adapter()` first.")
    with_weights = [name for name, x in unet.attn_processors.items() if isinstance(x, nn.Module) and x.state_dict()]
    if with_weights:
        raise ValueError(
            f"`unet` must have attention processors without weights, but {with_weights[0]} has some; call "
            "`unet.set_default_attn_processor()` first if they are not needed."
        )
    absent = [name for name, x in unet.state_dict().items() if x.device.type == "meta"]
    if absent:
        raise ValueError(
            f"`unet` must have its weights in memory, but {absent[0]} is on the meta device; call "
            "`pipe.remove_all_hooks()` if it was offloaded, or load it with from_pretrained."
        )


def check_options(options: Mapping[str, Any]) -> None:
    unknown = [name for name in options if name not in OPTIONS or name == "crosswkv_fusion"]
    if unknown:
        possible = ", ".join(name for name in OPTIONS if name != "crosswkv_fusion")
        raise ValueError(f"`crosswkv_options` must be of {possible}, got {', '.join(unknown)}.")


def crosswkv_attentions(unet: DIR7UNet2DConditionModel) -> dict[str, Attention]:
    """By name, in no particular order."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and hasattr(module, "crosswkv")
    }


def sources_of(result: DIR7UNet2DConditionModel, stock: Mapping[str, torch.Size]) -> dict[str, str]:
    """`{name in the result: name in the stock U-Net}` of all weights that fit by meaning and shape."""
    ours = result.state_dict()
    sources = {name: name for name in ours if ".crosswkv." not in name}
    ours_of_attention = PROJECTIONS[result.config.crosswkv_fusion]
    may_be_new = set()
    for prefix in crosswkv_attentions(result):
        for projection in PROJECTIONS["state"]:
            for name in [f"{prefix}.{projection}.{leaf}" for leaf in ("weight", "bias")]:
                may_be_new.add(name)
                sources.pop(name, None)
                stock_name = name.replace(projection, ours_of_attention.get(projection, "nothing"))
                if name in ours and stock_name in stock:
                    sources[name] = stock_name
    unfit = {name for name, of in sources.items() if of not in stock or stock[of] != ours[name].shape}
    if unfit - may_be_new:
        raise ValueError(
            f"The weights of `unet` must be those of its config, but {min(unfit - may_be_new)} is not; convert it "
            "as it was loaded, before anything replaces its layers."
        )
    modules = {name.rpartition(".")[0] for name in unfit}  # weight and bias belong together
    return {name: of for name, of in sources.items() if name.rpartition(".")[0] not in modules}


def fill_new(result: DIR7UNet2DConditionModel, stock: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> None:
    """Initial values, where the layer's stock weights are, for what is not copied."""
    for prefix, attn in crosswkv_attentions(result).items():
        place = stock[f"{prefix}.to_q.weight"]
        layer = fresh_layer(result, attn)
        if layer.fusion == "state" and layer.norm.bias is None:
            nn.init.constant_(layer.norm.weight, WEIGHT_TIMES_HEAD_DIM / layer.head_dim)
        attn.crosswkv = layer.to(place.device, place.dtype)
        for projection in PROJECTIONS["state"]:
            linear = attn.get_submodule(projection)
            if f"{prefix}.{projection}.weight" not in sources:
                linear.to_empty(device="cpu").reset_parameters()
                linear.to(place.device, place.dtype)


def fresh_layer(unet: DIR7UNet2DConditionModel, attn: Attention) -> CrossWKV:
    """What the U-Net's `__init__` put on `attn`, with its values."""
    built = attn.crosswkv
    options = {name.removeprefix("crosswkv_"): unet.config[name] for name in OPTIONS}
    options |= {
        "value_dim": built.value_dim,
        "num_layers": len(crosswkv_attentions(unet)),
        "own_projections": False,
        **{name: getattr(built, name) for name in ("layer_index", "group", "first_in_group")},
    }
    return CrossWKV(attn.query_dim, attn.cross_attention_dim, **options)


def copy_buffers(unet: UNet2DConditionModel, result: DIR7UNet2DConditionModel) -> None:
    """Those that a state dict does not hold, such as the kernels of FIR blocks."""
    buffers = dict(unet.named_buffers())
    for name, x in result.named_buffers():
        if x.device.type == "meta":
            module, _, leaf = name.rpartition(".")
            result.get_submodule(module).register_buffer(leaf, buffers[name].clone(), persistent=False)


def report_of(
    result: DIR7UNet2DConditionModel, stock: Mapping[str, torch.Tensor], sources: Mapping[str, str]
) -> ConversionReport:
    numbers = {name: x.numel() for name, x in result.named_parameters()}
    new = tuple(name for name in numbers if name not in sources)
    unused = tuple(sorted(stock.keys() - set(sources.values())))
    return ConversionReport(dict(sources), new, unused, sum(numbers[name] for name in new), sum(numbers.values()))
