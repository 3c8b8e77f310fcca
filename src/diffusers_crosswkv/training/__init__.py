from .callbacks import Callback, StepMetrics
from .config import TrainingConfig
from .failures import NoSpaceLeft, OutOfMemory
from .loop import TrainingResult, train
from .models import Models
from .run import Run
from .sharding import make_accelerator
from .stopping import TrainingInterrupted

__all__ = [
    "Callback",
    "Models",
    "NoSpaceLeft",
    "OutOfMemory",
    "Run",
    "StepMetrics",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "make_accelerator",
    "train",
]
