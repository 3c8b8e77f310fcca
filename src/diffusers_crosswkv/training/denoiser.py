"""All that a run trains, as one module: what is trained of the models, and what it predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.training_utils import cast_training_params
from torch import nn

from ..models import PromptState
from ..models.text_windows import encode_texts
from .config import TrainingConfig
from .extras import required
from .sharding import whole

if TYPE_CHECKING:
    from .models import Models

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # as Diffusers' LoRA script: of cross- and self-attention
COMPILED = "_orig_mod."  # what `torch.compile` puts into parameters' names


class Denoiser(nn.Module):
    """A U-Net and what is trained beside it, under one `forward`: what DDP, FSDP2 and EMA are given.

    Made by [`make_denoiser`]. Only what is trained requires gradients.

    Args:
        unet: a `DIR7UNet2DConditionModel` or, with what they have in common, a stock one.
        text_encoder: if it is trained; then `tokenizer` and `text_prefix` serve to encode captions.
        initial_states: per layer `[H, V, K]`, what the scans of all captions start from (state tuning).
        fingerprint: of the frozen U-Net that the initial states are for.
    """

    def __init__(
        self,
        unet: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_prefix: str = "",
        initial_states: Sequence[torch.Tensor] | None = None,
        fingerprint: torch.Tensor | None = None,
    ):
        super().__init__()
        self.unet: Any
        self.unet, self.text_encoder = unet, text_encoder
        self.tokenizer, self.text_prefix = tokenizer, text_prefix
        self.initial_states = nn.ParameterList(initial_states or ())
        self.fingerprint = fingerprint

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        captions: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Predict `[B, C, height, width]` from noisy samples of that shape.

        Args:
            timesteps: `[B]`, as the noise schedule counts them.
            prompt_embeds: `[B, L, D_q]` of the captions, if the text encoder is not trained.
            encoder_attention_mask: `[B, L]`, 1 = keep.
            captions: the B captions themselves, if it is.
        """
        if captions is not None:
            texts = [self.text_prefix + caption for caption in captions]
            prompt_embeds, encoder_attention_mask = encode_texts(self.text_encoder, self.tokenizer, texts)
        assert prompt_embeds is not None
        dtype = self.unet.conv_in.weight.dtype
        kwargs = None
        if len(self.initial_states) > 0:
            kwargs = {"initial_states": tuple(state.float()[None] for state in self.initial_states)}
        return self.unet(
            noisy.to(dtype),
            timesteps,
            prompt_embeds.to(dtype),
            encoder_attention_mask=encoder_attention_mask,
            cross_attention_kwargs=kwargs,
        ).sample

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters, always in one order: those of the module are `unet.`, `text_encoder.` and
        `initial_states.`, and go on as in the module's own state dictionary.
        """
        named = self.named_parameters()
        return [(name.replace(COMPILED, ""), parameter) for name, parameter in named if parameter.requires_grad]

    def trained_state_dict(self) -> dict[str, torch.Tensor]:
        """What is trained, and nothing else, under the names of [`~Denoiser.trained_parameters`].

        Shards are gathered: with FSDP every process must call.
        """
        return {name: whole(parameter.detach()) for name, parameter in self.trained_parameters()}


def make_denoiser(models: Models, config: TrainingConfig) -> Denoiser:
    """Set what `config.weights` trains, freeze the rest, and join both.

    Trained parameters become float32; what is frozen keeps its dtype.

    - `all`: the U-Net, and the text encoder with `config.train_text_encoder`.
    - `attn2`: the cross-attentions and the norms before them.
    - `lora`: adapters of rank and alpha `config.lora_rank` on the projections of cross- and self-attention, those that
      Diffusers' LoRA script adapts.
    - `state`: an initial state per layer, zero at first, so that training starts at the model as it is.

    Raises:
        ValueError: `state` is asked of a U-Net that has no prompt states (softmax, `crosswkv_fusion="paper"`); or
            `attn2` in a U-Net that is not float32, without mixed precision.
        ImportError: `lora` without peft.
    """
    models.unet.requires_grad_(False)
    models.text_encoder.requires_grad_(False)
    denoiser = Denoiser(models.unet)
    if config.weights == "all":
        models.unet.requires_grad_(True)
        if config.train_text_encoder:
            models.text_encoder.requires_grad_(True)
            denoiser = Denoiser(models.unet, models.text_encoder, models.tokenizer, models.text_prefix)
    elif config.weights == "attn2":
        check_dtype(models.unet.conv_in.weight.dtype, config)
        for module in cross_attention_modules(models.unet):
            module.requires_grad_(True)
    elif config.weights == "lora":
        add_lora(models.unet, config.lora_rank)
    else:
        denoiser = Denoiser(
            models.unet, initial_states=zero_states(models.unet), fingerprint=models.unet.fingerprint()
        )
    cast_training_params(denoiser)
    if config.gradient_checkpointing:
        models.unet.enable_gradient_checkpointing()
        if denoiser.text_encoder is not None:
            checkpoint_text_encoder(models.text_encoder)
    return denoiser


def checkpoint_text_encoder(text_encoder: Any) -> None:
    """Under the name that the installed transformers has for it."""
    enable = getattr(text_encoder, "activation_checkpointing_enable", None)
    (enable or text_encoder.gradient_checkpointing_enable)({"use_reentrant": False})


def check_dtype(frozen: torch.dtype, config: TrainingConfig) -> None:
    if frozen != torch.float32 and config.mixed_precision == "no":
        raise ValueError(
            f"With `weights='attn2'` a U-Net in {frozen} needs `mixed_precision` 'bf16' or 'fp16', got 'no': trained "
            "layers are float32. Load the U-Net in float32 or set `mixed_precision`."
        )


def cross_attention_modules(unet: Any) -> Iterator[nn.Module]:
    """The cross-attentions and the norms before them."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            for attn, norm in ((block.attn1, block.norm1), (block.attn2, block.norm2)):
                if attn is not None and attn.is_cross_attention:
                    yield from (attn, norm)


def add_lora(unet: Any, rank: int) -> None:
    required("peft", "lora")
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
    )


def lora_layers(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """The trained adapters as Diffusers saves them: what a pipeline's `save_lora_weights` takes as `unet_lora_layers`.

    With FSDP every process must call.
    """
    required("peft", "lora")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    tensors = {name.removeprefix("unet."): x for name, x in denoiser.trained_state_dict().items()}
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser.unet, tensors, unwrap_compiled=True))


def zero_states(unet: Any) -> list[torch.Tensor]:
    """Per layer `[H, V, K]`.

    Raises:
        ValueError: the U-Net has no prompt states.
    """
    fusion = getattr(unet.config, "crosswkv_fusion", "none: softmax cross-attention")
    if fusion not in ("state", "prefix"):
        raise ValueError(
            "`weights='state'` needs a U-Net with `crosswkv_fusion` 'state' or 'prefix', which have initial states, "
            f"got {fusion!r}; train 'attn2' or 'lora' instead."
        )
    device = unet.conv_in.weight.device
    return [torch.zeros(shape, device=device) for shape in unet.prompt_state_spec().shapes]


def initial_prompt_state(denoiser: Denoiser) -> PromptState:
    """What state tuning has learned, for `pipe(prompt, prompt_state=state)`, on the CPU.

    With FSDP every process must call.
    """
    states = [whole(state.detach()).float().cpu()[None] for state in denoiser.initial_states]
    spec = denoiser.unet.prompt_state_spec()
    transitions = [
        torch.eye(head_dim).expand(1, backward_heads, -1, -1).clone()  # it adds what it is, and changes nothing
        for backward_heads, (_, _, head_dim) in zip(spec.backward_heads, spec.shapes, strict=True)
    ]
    last_token = torch.zeros(1, spec.text_dim)  # what stands before a text's first token
    make = denoiser.unet.prompt_state_class
    return make(tuple(states), tuple(transitions), last_token, spec.fusion, denoiser.fingerprint)
