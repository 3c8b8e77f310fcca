from .config import ImageConfig, ModelConfig, RunConfig, read_prompts
from .image import MadeImage, StoppedError, make_image
from .loading import load_pipeline
from .prompt_length import PromptLength, prompt_length
from .record import ImageRecord, compare, read_record
from .run import RunReport, generate

__all__ = [
    "ImageConfig",
    "ImageRecord",
    "MadeImage",
    "ModelConfig",
    "PromptLength",
    "RunConfig",
    "RunReport",
    "StoppedError",
    "compare",
    "generate",
    "load_pipeline",
    "make_image",
    "prompt_length",
    "read_prompts",
    "read_record",
]
