"""Why some of Diffusers' tests cannot pass with our U-Net: a table that `diffusers_tests` reads."""

from typing import NamedTuple


class Inapplicable(NamedTuple):
    reason: str
    tests: tuple[str, ...]  # patterns of `file::Class::test`


UNET = "tests/models/unets/test_models_unet_2d_condition.py"

INAPPLICABLE: tuple[Inapplicable, ...] = (
    Inapplicable(
        "It wants every processor to be a fused one after `fuse_qkv_projections`. Those of self-attention are; "
        "CrossWKV's `to_k` and `to_v` take different mixes of the tokens and cannot be fused.",
        ("tests/pipelines/*stable_diffusion_xl.py::*::test_fused_qkv_projections",),
    ),
    Inapplicable(
        "It puts softmax processors (AttnProcessor, one of its own) on the cross-attention and looks whether they are "
        "there. Ours keep CrossWKV, whose weights a softmax processor could not use.",
        (
            f"{UNET}::TestUNet2DConditionAttention::test_attention_processor_dict",
            f"{UNET}::TestUNet2DConditionAttention::test_special_attn_proc",
        ),
    ),
    Inapplicable(
        "Custom Diffusion replaces the cross-attention by a softmax attention with weights of its own and saves the "
        "processors' weights; here there is no softmax cross-attention, and processors have no weights.",
        (f"{UNET}::TestUNet2DConditionCustomDiffusion::test_custom_diffusion_save_load",),
    ),
    Inapplicable(
        "It compares the name of the processors' class with those of Diffusers. Ours is a subclass, by which the text "
        "goes through CrossWKV; `tests/diffusers_crosswkv/models/test_unet_ip_adapter.py` checks what it computes.",
        (
            f"{UNET}::TestUNet2DConditionIPAdapter::test_ip_adapter",
            f"{UNET}::TestUNet2DConditionIPAdapter::test_ip_adapter_plus",
        ),
    ),
)
