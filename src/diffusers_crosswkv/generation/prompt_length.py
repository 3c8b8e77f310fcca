"""How long a prompt is to a pipeline's tokenizer, and how much of it the pipeline reads."""

import inspect
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from ..models.text_windows import window_length
from ..pipelines import DIR7Pipeline

NO_LIMIT = 10**6  # tokenizers without a limit give an astronomical one


@dataclass(frozen=True)
class PromptLength:
    """Tokens include the special ones; `lost` are those that the pipeline cuts off; `window` is read at once."""

    tokens: int
    windows: int
    window: int
    lost: int = 0

    def __str__(self) -> str:
        text = f"{self.tokens} token{'s' * (self.tokens != 1)} in {self.windows} window{'s' * (self.windows != 1)}"
        text += f" of up to {self.window}" if self.window < NO_LIMIT else ""
        return f"{text}; {self.lost} of them are cut off" if self.lost else text


def prompt_length(pipeline: DiffusionPipeline, prompt: str) -> PromptLength | None:
    """The length of `prompt`; None if the pipeline has no tokenizer under that name."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is None:
        return None
    if isinstance(pipeline, DIR7Pipeline):
        windows = pipeline.prompt_windows(prompt)
        limit = window_length(pipeline.text_encoder, tokenizer)
        return PromptLength(sum(map(len, windows)), len(windows), limit)
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    limit = tokenizer.model_max_length if parameter is None else parameter.default
    tokens = len(tokenizer(prompt, verbose=False).input_ids)
    return PromptLength(tokens, 1, limit, max(0, tokens - limit))
