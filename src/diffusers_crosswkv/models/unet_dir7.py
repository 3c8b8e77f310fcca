"""UNet2DConditionModel with CrossWKV in the place of softmax cross-attention."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..remote_code import LIBRARY, UNET_FILE, write_remote_code
from .attention_processor import FirstValues, PreparedText
from .crosswkv import check_text
from .crosswkv_layers import install_layers, remove_adapters
from .fingerprint import fingerprint, weights_version
from .prompt_state import PromptState, PromptStateSpec
from .stock_weights import check_single_file, of_crosswkv, of_stock_class, stock_weights_message
from .text_layers import onloaded, scan_layers, text_receptances, write_text
from .text_scan import backward_transitions

OF_TEXT = (None, "text_proj", "ip_image_proj")  # `encoder_hid_dim_type`s that keep the text's tokens


class Prompt(NamedTuple):
    """The prompt on its way through the parent's forward, until `process_encoder_hidden_states` prepares it."""

    text: torch.Tensor | None
    mask: torch.Tensor | None
    state: PromptState | None
    initial_states: tuple[torch.Tensor, ...] | None


def with_unet_arguments(init):
    """Give `init` the signature of UNet2DConditionModel plus its own keywords: Diffusers reads the config from it."""
    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
    init.__signature__ = inspect.Signature([*stock.values(), *own])
    return init


class DIR7UNet2DConditionModel(UNet2DConditionModel):
    """The U-Net of DIR-7: all of `UNet2DConditionModel`, its cross-attention replaced by CrossWKV.

    Every argument of the stock class keeps its meaning. Added:

    Args:
        crosswkv_fusion: `state` (default), `prefix` or `paper`; see [`CrossWKV`].
        crosswkv_head_dim: K, the features per head of receptance and key. The width of every block that has
            cross-attention must be a multiple of it; with the feature map `quadratic`, which makes four features of
            every channel, of a quarter of it. It is independent of `attention_head_dim`, which in this config means
            the *number* of heads, and serves self-attention alone.
        crosswkv_value_dim: D_v, width of the values, one for all blocks or one per down block; the block's if None.
        crosswkv_decay_rank, crosswkv_in_context_lr_rank, crosswkv_gate_rank, crosswkv_value_rank:
            ranks of the LoRAs (equations 8 to 10); 0 leaves one out, but for the gate's in `prefix` and `paper`
            fusion. None, for the gate's, is 0 in `state` fusion and 128 in the others.
        crosswkv_feature_map: what keys and receptances pass through, `quadratic`, `silu` or `identity`; None is
            `quadratic` in `state` fusion, `silu` in `prefix` and `identity` in `paper`.
        crosswkv_output_norm: normalise what is read from the state, per head (equation 14).
        crosswkv_norm_eps: what that adds to the variance; None is 1 in `state` fusion, K * 1e-5 in the others.
        crosswkv_bidirectional: in every layer half of the heads scan the text from its end.

    Raises:
        ValueError: sizes that do not divide, an unknown fusion, or blocks without a separate cross-attention.
    """

    prompt_state_class: ClassVar = PromptState
    _no_split_modules: ClassVar = [*UNet2DConditionModel._no_split_modules, "CrossWKVTransformerBlock"]
    _repeated_blocks: ClassVar = [*UNet2DConditionModel._repeated_blocks, "CrossWKVTransformerBlock"]
    _skip_layerwise_casting_patterns: ClassVar = [*UNet2DConditionModel._skip_layerwise_casting_patterns, "crosswkv"]

    @register_to_config
    @with_unet_arguments
    def __init__(
        self,
        *args,
        crosswkv_fusion: str = "state",
        crosswkv_head_dim: int = 64,
        crosswkv_value_dim: int | tuple[int, ...] | None = None,
        crosswkv_decay_rank: int = 64,
        crosswkv_in_context_lr_rank: int = 64,
        crosswkv_gate_rank: int | None = None,
        crosswkv_value_rank: int = 16,
        crosswkv_feature_map: str | None = None,
        crosswkv_output_norm: bool = True,
        crosswkv_norm_eps: float | None = None,
        crosswkv_bidirectional: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if type(self).__module__ == __name__:  # not a subclass of somebody's own
            self.__module__ = LIBRARY  # what `model_index.json` shall name, also where this file is remote code
        options = {
            "head_dim": crosswkv_head_dim,
            "fusion": crosswkv_fusion,
            "decay_rank": crosswkv_decay_rank,
            "in_context_lr_rank": crosswkv_in_context_lr_rank,
            "gate_rank": crosswkv_gate_rank,
            "value_rank": crosswkv_value_rank,
            "feature_map": crosswkv_feature_map,
            "output_norm": crosswkv_output_norm,
            "norm_eps": crosswkv_norm_eps,
            "bidirectional": crosswkv_bidirectional,
        }
        self._crosswkv_blocks = install_layers(self, crosswkv_value_dim, options)

    @property
    def _crosswkv_attentions(self) -> tuple[Attention, ...]:
        """In the order of execution."""
        return tuple(attn for _, attentions in self._crosswkv_blocks for attn in attentions)

    def fingerprint(self) -> torch.Tensor:
        """`[rows, n]`: some values of everything that writes a prompt state, to tell models apart.

        Adapters count as what they add to the weights, merged or not.
        """
        return fingerprint(self._crosswkv_blocks, self.dtype)

    def weights_version(self) -> tuple[object, ...]:
        """Changes whenever what writes a prompt state is written to, moved or adapted."""
        return weights_version(self._crosswkv_blocks)

    def prompt_state_spec(self) -> PromptStateSpec:
        """What a prompt state of this model must look like."""
        layers = [attn.crosswkv for attn in self._crosswkv_attentions]
        if not layers:
            raise ValueError("A prompt state needs cross-attention, and this U-Net has none; see `down_block_types`.")
        shapes = tuple((layer.num_heads, layer.value_dim // layer.num_heads, layer.head_dim) for layer in layers)
        backward_heads = tuple(layer.backward_heads for layer in layers)
        return PromptStateSpec(self.config.crosswkv_fusion, shapes, backward_heads, layers[0].cross_attention_dim)

    @apply_forward_hook
    def check_prompt_state(self, prompt_state: PromptState) -> None:
        """Compare a prompt state with the weights as they are now, which costs a probe of every layer.

        `forward` does not where it is compiled. Elsewhere it trusts what was accepted until it sees weights change,
        and misses what is written through `.data`.

        Raises:
            ValueError: the state was made for another model.
        """
        with onloaded(self):
            prompt_state.check(self, self.prompt_state_spec(), len(prompt_state), afresh=True)

    @apply_forward_hook
    @apply_lora_scale("cross_attention_kwargs")
    def encode_prompt(
        self,
        prompt_embeds: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        prompt_state: PromptState | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> PromptState:
        """Scan the text once, for every pixel of every denoising step.

        Args:
            prompt_embeds: text tokens `[B, L, D_q]` as the text encoder gives them.
            encoder_attention_mask: `[B, L]`, 1 = keep; masked tokens count as deleted.
            prompt_state: state of the text that this one continues; encoding A, then B from A's state, equals
                encoding A + B.
            added_cond_kwargs: what the config's `encoder_hid_dim_type` takes besides the text.
            cross_attention_kwargs: `{"scale": s}` scales the LoRAs, as in `forward`: a state is of one scale.

        Returns:
            [`PromptState`] of constant size, states in float32. Gradients flow through it.

        Raises:
            ValueError: shapes do not fit, the input is not finite, the state was made for another model, or the
                fusion is `paper`, whose state is written by the image.
        """
        if self.config.crosswkv_fusion == "paper":
            raise ValueError(
                "A prompt state needs `crosswkv_fusion` 'state' or 'prefix', got 'paper': there the image writes the "
                "state and the text only reads it. Pass `prompt_embeds` to the U-Net instead."
            )
        self.prompt_state_spec()
        with onloaded(self):
            self._check_prompt(prompt_embeds, encoder_attention_mask, prompt_state, len(prompt_embeds))
            if not torch.compiler.is_compiling() and not prompt_embeds.isfinite().all():
                raise ValueError(
                    "`prompt_embeds` must be finite, got NaN or Inf; check the text encoder and its dtype."
                )
            text = self._project_text(prompt_embeds, added_cond_kwargs or {})
            last_token = None if prompt_state is None else prompt_state.last_token
            writes, last_token = write_text(self._crosswkv_blocks, text, as_mask(encoder_attention_mask), last_token)
            shown = self.fingerprint()
        heads = [attn.crosswkv.backward_heads for attn in self._crosswkv_attentions]
        transitions = [backward_transitions(write, count) for write, count in zip(writes, heads, strict=True)]
        if prompt_state is not None:
            transitions = [new @ old.to(new) for new, old in zip(transitions, prompt_state.transitions, strict=True)]
        earlier = (None, None) if prompt_state is None else (prompt_state.states, prompt_state.transitions)
        states = scan_layers(self._crosswkv_blocks, writes, *earlier)
        states = tuple(state.clone() for state in states)  # of their own, not parts of the joined scan
        state = PromptState(states, tuple(transitions), last_token.clone(), self.config.crosswkv_fusion, shown)
        if not torch.compiler.is_compiling():
            state.accept(self)  # its first reader need not probe the weights again
        return state

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: tuple[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple:
        """Predict from a noisy sample, as `UNet2DConditionModel.forward` does; its arguments, and one more way in.

        With `cross_attention_kwargs={"prompt_state": state}` the layers read the state and scan no text;
        `encoder_hidden_states` may then be None. The state's batch must be the sample's.

        With `cross_attention_kwargs={"initial_states": states}`, per layer `[1, H, V, K]` or `[B, H, V, K]`, the scans
        of the text start there instead of at zero: as if it continued a prompt state that no text has left. What state
        tuning learns; gradients flow into them.

        Args:
            sample: `[B, C, height, width]`.
            timestep: one for all, or `[B]`.
            encoder_hidden_states: `[B, L, D_q]`.
            encoder_attention_mask: `[B, L]`, 1 = keep; masked tokens count as deleted.

        Raises:
            ValueError: the text's shape, the prompt state or the initial states do not fit.
        """
        cross_attention_kwargs = dict(cross_attention_kwargs or {})
        prompt_state, initial_states = (
            cross_attention_kwargs.pop(x, None) for x in ("prompt_state", "initial_states")
        )
        if self._crosswkv_attentions:
            reading = prompt_state is not None
            self._check_prompt(encoder_hidden_states, encoder_attention_mask, prompt_state, len(sample), reading)
            if initial_states is not None:
                initial_states = self._expanded(initial_states, len(sample))
        prompt = Prompt(encoder_hidden_states, encoder_attention_mask, prompt_state, initial_states)
        return super().forward(
            sample,
            timestep,
            prompt,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs or None,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            down_intrablock_additional_residuals=down_intrablock_additional_residuals,
            return_dict=return_dict,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in Diffusers, but for weights that are not safetensors: they are read with `use_safetensors=False` only.

        Raises:
            OSError: there are no weights, or none as safetensors.
            ValueError: the weights are those of a stock U-Net, without the parameters of CrossWKV.
        """
        if kwargs.get("use_safetensors") is None:  # where Diffusers would take other files, which can run code
            kwargs["use_safetensors"] = True
        config = cls.load_config(pretrained_model_name_or_path, **kwargs)
        if of_stock_class(config):
            raise ValueError(stock_weights_message(pretrained_model_name_or_path))
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        missing = of_crosswkv(info["missing_keys"])
        if missing:
            raise ValueError(stock_weights_message(pretrained_model_name_or_path, missing))
        return (model, info) if with_info else model

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict=None, **kwargs):
        """As in Diffusers, for weights of this class under the names of `save_pretrained`.

        Raises:
            ValueError: the weights are those of a stock U-Net, in Diffusers' or the original format.
        """
        checkpoint = check_single_file(pretrained_model_link_or_path_or_dict, kwargs)
        return super().from_single_file(checkpoint, **kwargs)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in PyTorch.

        Raises:
            RuntimeError: `strict`, and names or shapes differ; for weights of a stock U-Net it says what to do.
        """
        missing = of_crosswkv(self.state_dict().keys() - state_dict.keys())
        if strict and missing:
            raise RuntimeError(stock_weights_message("The state dictionary", missing))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def save_config(self, save_directory, *args, **kwargs) -> None:
        """As in Diffusers; beside the config lies the code that loads it on a machine without this package."""
        write_remote_code(type(self), save_directory, UNET_FILE)
        super().save_config(save_directory, *args, **kwargs)

    def unload_lora(self) -> None:
        """As in Diffusers, which passes by modules with "lora" in their names, as some of CrossWKV's own have."""
        for attn in self._crosswkv_attentions:
            remove_adapters(attn.crosswkv)
        super().unload_lora()

    def set_default_attn_processor(self) -> None:
        """Stock self-attention; cross-attention stays CrossWKV."""
        self.set_attn_processor(AttnProcessor())

    def get_aug_embed(self, emb, encoder_hidden_states, added_cond_kwargs):
        if isinstance(encoder_hidden_states, Prompt):
            encoder_hidden_states = encoder_hidden_states.text
        return super().get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)

    def process_encoder_hidden_states(self, encoder_hidden_states, added_cond_kwargs):
        if not isinstance(encoder_hidden_states, Prompt):
            return super().process_encoder_hidden_states(encoder_hidden_states, added_cond_kwargs)
        text, mask, prompt_state, initial_states = encoder_hidden_states
        images = self._image_tokens(added_cond_kwargs or {})
        if prompt_state is not None:
            return PreparedText(prompt_state.states, (), FirstValues(), images)
        text, mask = self._project_text(text, added_cond_kwargs or {}), as_mask(mask)
        if self.config.crosswkv_fusion == "paper":
            return PreparedText((), text_receptances(self._crosswkv_blocks, text, mask), FirstValues(), images)
        writes, _ = write_text(self._crosswkv_blocks, text, mask)
        states = scan_layers(self._crosswkv_blocks, writes, initial_states)
        return PreparedText(states, (), FirstValues(), images)

    def _expanded(self, initial_states: Sequence[torch.Tensor], batch_size: int) -> tuple[torch.Tensor, ...]:
        """Initial states `[1, H, V, K]` or `[B, H, V, K]` for all samples, if they are of this model's shapes."""
        spec = self.prompt_state_spec()
        shapes = tuple(tuple(x.shape[1:]) for x in initial_states)
        if spec.fusion == "paper" or shapes != spec.shapes or {len(x) for x in initial_states} - {1, batch_size}:
            raise ValueError(
                f"`initial_states` must be [1 or B, H, V, K] per layer, [H, V, K] being {spec.shapes}, and the fusion "
                f"'state' or 'prefix', got {[list(x.shape) for x in initial_states]} and {spec.fusion!r}."
            )
        return tuple(x.expand(batch_size, -1, -1, -1) for x in initial_states)

    def _image_tokens(self, added_cond_kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """The image prompts of the IP-Adapters that are loaded, `[B, images, tokens, D_q]` each."""
        if self.config.encoder_hid_dim_type != "ip_image_proj":
            return ()
        if "image_embeds" not in added_cond_kwargs:
            raise ValueError(
                "With an IP-Adapter `added_cond_kwargs` must hold `image_embeds`, one tensor per adapter, got "
                f"{sorted(added_cond_kwargs)}; `unload_ip_adapter` takes the adapter out."
            )
        return tuple(self.encoder_hid_proj(added_cond_kwargs["image_embeds"]))

    def _project_text(self, text: torch.Tensor, added_cond_kwargs: dict[str, Any]) -> torch.Tensor:
        """Text tokens of the layers' width, `[B, L, D_q]`."""
        if self.config.encoder_hid_dim_type != "ip_image_proj":
            return super().process_encoder_hidden_states(text, added_cond_kwargs)
        projection = getattr(self, "text_encoder_hid_proj", None)  # Kolors
        return text if projection is None else projection(text)

    def _check_prompt(self, text, mask, prompt_state, batch_size: int, reading: bool = False) -> None:
        if prompt_state is not None:
            if not isinstance(prompt_state, PromptState):
                raise ValueError(f"`prompt_state` must be a PromptState, got {type(prompt_state).__name__}.")
            prompt_state.check(self, self.prompt_state_spec(), batch_size, afresh=not reading)
        kind = self.config.encoder_hid_dim_type
        if (reading and self.config.addition_embed_type != "text") or kind not in OF_TEXT:
            return
        if not isinstance(text, torch.Tensor):
            besides = "" if not reading else ", besides it for `addition_embed_type='text'`"
            raise ValueError(
                "`encoder_hidden_states` must be text tokens [B, L, D_q] unless a prompt state is given "
                f"(cross_attention_kwargs={{'prompt_state': state}}){besides}, got {type(text).__name__}."
            )
        projected = kind == "text_proj" or getattr(self, "text_encoder_hid_proj", None) is not None
        layer = self._crosswkv_blocks[0][1][0].crosswkv
        check_text(text, mask, self.config.encoder_hid_dim if projected else layer.cross_attention_dim)
        if len(text) != batch_size:
            raise ValueError(
                f"`encoder_hidden_states` must hold one prompt per sample, got {len(text)} and {batch_size}."
            )


def as_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.bool()
