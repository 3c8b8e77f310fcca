from .config import TrainingConfig
from .loop import Models, TrainingInterrupted, train

__all__ = ["Models", "TrainingConfig", "TrainingInterrupted", "train"]
