"""The prompt as a value of constant size: what all layers know of a text, whatever its length."""

import operator
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex

import torch

from .prompt_state_file import STATE_DTYPE_NAMES, STATE_DTYPES, read_state_file, write_state_file

FINGERPRINT_TOLERANCE = 0.01  # per parameter; rounding to bfloat16 moves weights by 0.2 %


class Fingerprinted(Protocol):
    """A model that can show some of its weights, and tell cheaply whether they have changed."""

    def fingerprint(self) -> torch.Tensor: ...

    def weights_version(self) -> tuple[object, ...]: ...


@dataclass(frozen=True)
class PromptStateSpec:
    """What a U-Net's prompt states look like."""

    fusion: str
    shapes: tuple[tuple[int, int, int], ...]  # per layer H, V, K
    backward_heads: tuple[int, ...]  # per layer
    text_dim: int


@dataclass(frozen=True, eq=False)
class PromptState:
    """The states of all CrossWKV layers for a batch of prompts.

    Made by [`DIR7UNet2DConditionModel.encode_prompt`]; passed to the U-Net as
    `cross_attention_kwargs={"prompt_state": state}`, or to `encode_prompt` to continue the text. A value: no method
    changes it.

    Args:
        states: per layer, in the order of execution, `[B, H, V, K]`.
        transitions: per layer `[B, backward heads, K, K]`, what a continuation passes on its way to the beginning.
        last_token: `[B, D_q]`, the last token that was scanned: a continuation mixes it into its first token.
        fusion: the fusion of the U-Net, `state` or `prefix`.
        fingerprint: `[parameters, n]`, some of the weights that wrote the states; empty if they could not be read.
    """

    states: tuple[torch.Tensor, ...]
    transitions: tuple[torch.Tensor, ...]
    last_token: torch.Tensor
    fusion: str
    fingerprint: torch.Tensor
    _accepted: "weakref.WeakKeyDictionary[Fingerprinted, tuple[object, ...]] | None" = None

    def __repr__(self) -> str:
        shapes = " ".join("x".join(map(str, shape)) for shape in self._shapes)
        return f"PromptState({self.fusion}, batch {self.batch_size}, [H V K] {shapes}, {self.dtype}, {self.device})"

    def __reduce__(self):  # copies need not know the models that accepted this state, and must not copy them
        return PromptState, (self.states, self.transitions, self.last_token, self.fusion, self.fingerprint)

    @property
    def batch_size(self) -> int:
        return self.last_token.shape[0]

    @property
    def device(self) -> torch.device:
        return self.last_token.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return self.states[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take; the same for a prompt of one token and of ten thousand."""
        return sum(x.nbytes for x in (*self.states, *self.transitions, self.last_token, self.fingerprint))

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | torch.Tensor) -> "PromptState":
        """Prompts of the batch, by number, slice, list of numbers or mask; always with a batch dimension."""
        if isinstance(index, SupportsIndex) and getattr(index, "ndim", 0) == 0:
            index = operator.index(index)
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"prompt {index} of a PromptState with {self.batch_size} prompts")
            rows: slice | torch.Tensor | list[int] = [index]
        else:
            rows = index if isinstance(index, slice | torch.Tensor) else list(index)  # type: ignore[arg-type]
        return self._with(lambda x: x[rows])

    def chunk(self, chunks: int) -> tuple["PromptState", ...]:
        """As `torch.chunk`: with guidance on, `chunk(2)` gives the negative prompts and the others."""
        size = -(-self.batch_size // chunks)
        return tuple(self[start : start + size] for start in range(0, self.batch_size, size))

    @staticmethod
    def cat(states: Sequence["PromptState"]) -> "PromptState":
        """One state for all prompts of several, in order.

        Raises:
            ValueError: there are none, or they come from different models.
        """
        if len(states) == 0:
            raise ValueError("`PromptState.cat` needs at least one state, got none.")
        first = states[0]
        for i, state in enumerate(states):
            _check_same("fusion", first.fusion, state.fusion, f"prompt state {i}")
            _check_same("layers [H, V, K]", first._shapes, state._shapes, f"prompt state {i}")
            _check_same("backward heads", first._backward_heads, state._backward_heads, f"prompt state {i}")
            _check_fingerprint(first.fingerprint, state.fingerprint, f"prompt state {i}")
        known = next((state for state in states if state.fingerprint.numel()), first)

        def joined(name: str) -> tuple[torch.Tensor, ...]:
            layers = zip(*(getattr(state, name) for state in states), strict=True)
            return tuple(torch.cat([x.to(parts[0]) for x in parts]) for parts in layers)

        last_token = torch.cat([state.last_token.to(first.last_token) for state in states])
        return PromptState(
            joined("states"), joined("transitions"), last_token, known.fusion, known.fingerprint, known._accepted
        )

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> "PromptState":
        """On another device, or the states in another dtype; they are read in float32 whatever they are kept in.

        As with tensors, a dtype may stand in the first place.

        Raises:
            ValueError: the dtype is not float16, bfloat16, float32 or float64.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in (None, *STATE_DTYPES):
            raise ValueError(
                f"A prompt state's dtype must be one of {STATE_DTYPE_NAMES}, got {dtype}; choose another."
            )
        return self._with(lambda x: x.to(device=device, dtype=dtype))

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all; folders on the way are made.

        Raises:
            IsADirectoryError: `path` is a folder.
        """
        tensors = {f"states.{i}": x for i, x in enumerate(self.states)}
        tensors |= {f"transitions.{i}": x for i, x in enumerate(self.transitions)}
        tensors |= {"last_token": self.last_token, "fingerprint": self.fingerprint}
        write_state_file(path, tensors, self.fusion)

    @staticmethod
    def load(path: str | os.PathLike) -> "PromptState":
        """Read what [`~PromptState.save`] wrote, onto the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, holds something else, is of another version's format, or is not finite.
        """
        tensors, fusion = read_state_file(path)
        layers = range(sum(name.startswith("states.") for name in tensors))
        states, transitions = (tuple(tensors[f"{name}.{i}"] for i in layers) for name in ("states", "transitions"))
        return PromptState(states, transitions, tensors["last_token"], fusion, tensors["fingerprint"])

    def check(self, model: "Fingerprinted", spec: PromptStateSpec, batch_size: int, afresh: bool = False) -> None:
        """Refuse a model that this state was not made for.

        Shapes are compared every time; weights, which may lie on another device, when they have changed. `afresh` they
        are compared in any case: what is written through `.data`, as by `EMAModel.copy_to`, leaves no trace.

        Raises:
            ValueError: fusion, layers, text width, weights or batch size differ.
        """
        _check_same("fusion", spec.fusion, self.fusion, "the prompt state")
        _check_same("layers [H, V, K]", spec.shapes, self._shapes, "the prompt state")
        _check_same("backward heads", spec.backward_heads, self._backward_heads, "the prompt state")
        _check_same("text width", spec.text_dim, self.last_token.shape[-1], "the prompt state")
        if self.batch_size != batch_size:
            raise ValueError(
                f"The prompt state must hold one prompt per sample, got {self.batch_size} and {batch_size}; "
                "repeat prompts by indexing: state[[0, 0, 1, 1]]."
            )
        if torch.compiler.is_compiling():
            return
        if afresh or self._accepted_by().get(model) != model.weights_version():
            _check_fingerprint(model.fingerprint(), self.fingerprint, "the prompt state")
            self.accept(model)

    def accept(self, model: "Fingerprinted") -> None:
        """Take the present weights of `model`, which has written this state or been compared, for those that fit."""
        self._accepted_by()[model] = model.weights_version()

    def _accepted_by(self) -> "weakref.WeakKeyDictionary[Fingerprinted, tuple[object, ...]]":
        """The models that have accepted these weights; one table for a state and its copies on other devices."""
        if self._accepted is None:
            object.__setattr__(self, "_accepted", weakref.WeakKeyDictionary())
        assert self._accepted is not None
        return self._accepted

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(x.shape[1:]) for x in self.states)

    @property
    def _backward_heads(self) -> tuple[int, ...]:
        return tuple(x.shape[1] for x in self.transitions)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PromptState":
        states, transitions = (tuple(change(x) for x in of_layers) for of_layers in (self.states, self.transitions))
        accepted = None if torch.compiler.is_compiling() else self._accepted_by()
        return PromptState(states, transitions, change(self.last_token), self.fusion, self.fingerprint, accepted)


def _check_same(what: str, expected: object, got: object, where: str) -> None:
    if got != expected:
        raise ValueError(
            f"{where} must have the {what} of this model, {expected}, got {got}: it was made for another model. "
            "Encode the prompt with this one."
        )


def _check_fingerprint(expected: torch.Tensor, got: torch.Tensor, where: str) -> None:
    if expected.numel() == 0 or got.numel() == 0:  # offloaded or quantized weights: nothing to compare
        return
    expected, got = expected.float().cpu(), got.float().cpu()
    difference = float("inf")
    if got.shape == expected.shape:
        difference = ((got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)).max().item()
    if not difference <= FINGERPRINT_TOLERANCE:
        raise ValueError(
            f"{where} must come from a model with these weights, but those that wrote it differ by {difference:.1%} "
            f"(allowed {FINGERPRINT_TOLERANCE:.1%}): it was made for another model, or another LoRA, LoRA scale or "
            "cast of it. Encode the prompt with this one."
        )
